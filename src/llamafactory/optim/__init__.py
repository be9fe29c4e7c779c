"""Optimizers beyond those transformers knows by name. One file per choice; each says itself when it is chosen.

A file `optim/<name>.py` defines `KEY` (the option that chooses it), `is_chosen(config)` and
`build(model, config, args) -> torch.optim.Optimizer`. Knows no trainer.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.parts import Family

OPTIMIZERS = Family(key="optimizer", package="llamafactory.optim", exports=("KEY", "is_chosen", "build"))


def build_optimizer(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer | None:
    """The optimizer that the options choose, or None to take transformers' own by the name in `optim`.

    Raises ConfigError when the options choose two.
    """
    parts = [OPTIMIZERS.load(name) for name in OPTIMIZERS.names()]
    chosen = [part for part in parts if part.is_chosen(config)]
    if len(chosen) > 1:
        keys = " and ".join(part.KEY for part in chosen)
        raise ConfigError(f"{chosen[1].KEY}: {keys} each choose an optimizer, but a run has one; keep one of them")
    return chosen[0].build(model, config, args) if chosen else None
