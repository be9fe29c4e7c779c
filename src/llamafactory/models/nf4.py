"""Rounding to 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, appendix E) in blocks with one scale each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_SIZE = 64
CODEBOOK = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def round_to_nf4(weight: Tensor) -> Tensor:
    """The nearest values of the codebook, times the largest magnitude of each block of 64; shape and dtype stay."""
    flat = weight.float().flatten()
    blocks = functional.pad(flat, (0, -flat.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    codebook = torch.tensor(CODEBOOK, device=weight.device)
    index = torch.bucketize(blocks / scale, (codebook[1:] + codebook[:-1]) / 2)
    return (codebook[index] * scale).flatten()[: flat.numel()].view_as(weight).to(weight.dtype)
