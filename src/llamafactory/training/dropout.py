"""Switching dropout off: losses that compare two policies token by token must not compare random masks.

Knows modules, no stage's formula.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

STAGES = frozenset({"dpo", "orpo", "simpo", "kto", "ppo"})
"""Stages whose policy is trained without dropout."""

_RATES = ("attention_dropout", "attn_dropout", "dropout", "activation_dropout", "residual_dropout")


def switch_off_dropout(model: nn.Module) -> float:
    """Set every dropout rate of the model to 0, in place; returns the largest rate there was."""
    largest = 0.0
    for module in model.modules():
        names = ("p",) if isinstance(module, _DropoutNd) else _RATES
        for name in names:
            rate = getattr(module, name, None)
            if isinstance(rate, float) and rate:
                largest = max(largest, rate)
                setattr(module, name, 0.0)
    return largest
