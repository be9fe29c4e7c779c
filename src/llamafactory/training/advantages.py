"""From scores and log-probabilities of sampled answers to advantages and returns: the arithmetic of PPO's experience.

Matrices are [B, T] fp32 with a bool mask of the response tokens, which lie together in each row. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def token_rewards(log_ratios: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """[B, T] rewards: -kl_coef * (log p - log p_ref) on every token, plus the score [B] on the last one.

    Section 2, equation 2 of https://arxiv.org/abs/1909.08593, with the divergence estimated by its k1 form, the
    log-ratio of the sampled token. 0 where there is no response; a row without a response gets nothing.
    """
    rewards = -kl_coef * log_ratios * mask
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return rewards + last * scores[:, None]


def advantages_of(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """[B, T] generalised advantage estimates, equation 16 of https://arxiv.org/abs/1506.02438; 0 outside the mask.

    delta_t = r_t + gamma * V_(t+1) - V_t, A_t = delta_t + gamma * lam * A_(t+1); behind the last token both are 0.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards + gamma * following - values) * mask
    found = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for step in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, step] + gamma * lam * running
        found[:, step] = running
    return found * mask


def moment_sums(parts: Sequence[Tensor]) -> Tensor:
    """[3] fp64: count, sum and sum of squares over all values of all parts; sums of processes may be added up."""
    values = torch.cat([part.flatten() for part in parts]).double()
    return torch.stack([values.new_tensor(float(values.numel())), values.sum(), values.square().sum()])


def mean_and_variance(sums: Tensor) -> tuple[float, float]:
    """Mean and unbiased variance (divided by count - 1) from `moment_sums`; variance 0 below two values."""
    count, total, squares = sums.tolist()
    if not count:
        return 0.0, 0.0
    mean = total / count
    return mean, max(0.0, squares - count * mean * mean) / max(count - 1, 1)


def whiten(values: Tensor, mean: float, variance: float, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8); with shift_mean False the mean is put back, so only the scale changes."""
    whitened = (values - mean) * (variance + 1e-8) ** -0.5
    return whitened if shift_mean else whitened + mean
