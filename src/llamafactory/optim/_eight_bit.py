"""Tensors in 8 bits per value: blocks of 256 values, each divided by its largest, rounded to a table of 256 numbers.

The table is the dynamic data type of https://arxiv.org/abs/2110.02861 (section 1.3): numbers from 10^-7 to 1 with a
relative error that stays small. One fp32 scale per block is kept. Pure torch, so it runs on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256


@functools.cache
def table(*, signed: bool) -> Tensor:
    """The 256 numbers that can be stored, rising, fp32. signed: from -1 to 1 instead of 0 to 1."""
    decades = 7 if signed else 8
    positive = []
    for number in range(decades):
        count = 2**number  # finer and finer steps towards the largest decade
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        positive.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (number - decades + 1))
    values = torch.cat(positive)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    numbers = torch.cat([-values, zero, values, one]) if signed else torch.cat([zero, values])
    if not signed:
        numbers[-1] = 1.0
    return numbers.sort().values.float()


def quantize(tensor: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """[any shape] -> codes [n] uint8 of the flattened values, and scales [ceil(n / 256)] fp32."""
    flat = tensor.float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    numbers = table(signed=signed).to(tensor.device)
    middles = (numbers[1:] + numbers[:-1]) / 2
    codes = torch.bucketize(padded / scales.clamp(min=1e-38)[:, None], middles)
    return codes.to(torch.uint8).flatten()[: flat.numel()].clone(), scales


def dequantize(codes: Tensor, scales: Tensor, shape: Sequence[int], *, signed: bool) -> Tensor:
    """The fp32 values of `quantize`, in the given shape."""
    values = table(signed=signed).to(codes.device)[codes.int()]
    return (values * scales.repeat_interleave(BLOCK)[: codes.numel()]).view(*shape)
