"""Update rules: from a gradient and a state to the direction of the update. Know no weights and no learning rate.

Each rule advances its state in place and counts its calls in `state["step"]`. Moments have the format of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llamafactory.optim._eight_bit import dequantize, quantize
from llamafactory.optim._update import Group, State, wide

MIN_8BIT_SIZE = 4096
"""Smaller tensors keep full moments: they cost little, and vectors of norms are sensitive."""


def adam(gradient: Tensor, state: State, group: Group) -> Tensor:
    """Adam, https://arxiv.org/abs/1412.6980 algorithm 1: m^ / (sqrt(v^) + eps), both moments bias-corrected."""
    if "m" not in state:
        state["m"], state["v"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    return _adam(gradient, state["m"], state["v"], state, group)


def adam_8bit(gradient: Tensor, state: State, group: Group) -> Tensor:
    """Adam whose moments are stored in 8 bits per value, block by block: https://arxiv.org/abs/2110.02861.

    m and sqrt(v) are stored (the root halves the range of exponents, so no divisor is rounded to zero).
    """
    if gradient.numel() < MIN_8BIT_SIZE:
        return adam(gradient, state, group)
    if "m" in state:
        m = dequantize(state["m"], state["m_scale"], gradient.shape, signed=True)
        v = dequantize(state["v"], state["v_scale"], gradient.shape, signed=False).square_()
    else:
        m, v = (torch.zeros_like(gradient, dtype=torch.float32) for _ in range(2))
    direction = _adam(wide(gradient), m, v, state, group)
    state["m"], state["m_scale"] = quantize(m, signed=True)
    state["v"], state["v_scale"] = quantize(v.sqrt_(), signed=False)
    return direction


def adafactor(gradient: Tensor, state: State, group: Group) -> Tensor:
    """Adafactor without momentum, https://arxiv.org/abs/1804.04235 algorithms 4 and 5.

    The second moment of a matrix is kept as its row and column means R, C: V = R C / mean(R), with the decay
    1 - t^-0.8; the direction G / sqrt(V) is scaled down to a root mean square of at most 1.
    """
    del group
    state["step"] = state.get("step", 0) + 1
    decay = 1 - state["step"] ** -0.8
    squares = wide(gradient).square().add_(1e-30)
    if gradient.ndim < 2:
        v = _average(state, "v", squares, decay)
    else:
        rows = _average(state, "rows", squares.mean(-1, keepdim=True), decay)
        columns = _average(state, "columns", squares.mean(-2, keepdim=True), decay)
        v = rows / rows.mean(-2, keepdim=True) * columns
    direction = gradient / v.sqrt()
    return direction / direction.square().mean().sqrt().clamp(min=1)


RULES: dict[str, Callable[[Tensor, State, Group], Tensor]] = {
    "adam": adam,
    "adam_8bit": adam_8bit,
    "adafactor": adafactor,
}


def _adam(gradient: Tensor, m: Tensor, v: Tensor, state: State, group: Group) -> Tensor:
    state["step"] = step = state.get("step", 0) + 1
    beta1, beta2 = group["betas"]
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    divisor = v.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    return (m / divisor).div_(1 - beta1**step)


def _average(state: State, name: str, value: Tensor, decay: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    average: Tensor = state[name]
    return average.lerp_(value, 1 - decay)
