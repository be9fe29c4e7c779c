"""Optimizers beyond those transformers knows by name. One file per choice; each says itself when it is chosen.

A file `optim/<name>.py` defines `FACTS` (what chooses it and what it cannot stand beside, see `llamafactory.facts`) and
`build(model, config, args) -> torch.optim.Optimizer`. Knows no trainer.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.rules_parts import OPTIMIZER, chosen_parts
from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.optim._packages import require_package
from llamafactory.optim._update import TensorwiseOptimizer as TensorwiseOptimizer
from llamafactory.parts import Family

OPTIMIZERS = Family(key=OPTIMIZER, package="llamafactory.optim", exports=("FACTS", "build"))


def build_optimizer(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer | None:
    """The optimizer that the options choose, or None to take transformers' own by the name in `optim`.

    Raises ConfigError when the options choose two, MissingPackageError when transformers' own needs a package.
    """
    chosen = chosen_parts(config, OPTIMIZER)
    if len(chosen) > 1:
        names = " and ".join(facts.title for facts in chosen.values())
        raise ConfigError(f"optim: {names} are both chosen, but a run has one optimizer; keep one of them")
    if not chosen:
        require_package(config.training.optim)
        return None
    optimizer: Optimizer = OPTIMIZERS.load(next(iter(chosen))).build(model, config, args)
    return optimizer
