"""Other ways to compute a model's forward and backward pass. One file per choice; several can be chosen together.

A file `models/kernels/<name>.py` defines `FACTS` (what chooses it and what it cannot stand beside, see
`llamafactory.facts`) and `check(config)`, which raises what this machine lacks. They change training alone; a model
that skips layers does so always. Knows no trainer.
"""

from __future__ import annotations

import torch

from llamafactory.config.rules_parts import KERNEL, chosen_parts
from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.parts import Family

KERNELS = Family(key=KERNEL, package="llamafactory.models.kernels", exports=("FACTS", "check"))


def check_kernels(config: RunConfig) -> None:
    """Raise ConfigError or MissingPackageError when a chosen kernel cannot run on this machine."""
    for name in chosen_parts(config, KERNEL):
        KERNELS.load(name).check(config)


def require_gpu(config: RunConfig, key: str, what: str, capability: tuple[int, int] = (0, 0)) -> None:
    """Raise ConfigError unless the run uses a CUDA GPU of at least this compute capability.

    what: what needs it, the beginning of a sentence.
    """
    if config.training.use_cpu or not torch.cuda.is_available():
        raise ConfigError(
            f"{config.place(key)}: {key}: {what} needs an NVIDIA GPU, and this run uses the CPU; remove {key}"
        )
    found = torch.cuda.get_device_capability()
    if found < capability:
        needed, got = (".".join(map(str, version)) for version in (capability, found))
        raise ConfigError(
            f"{config.place(key)}: {key}: {what} needs compute capability {needed}, and {torch.cuda.get_device_name()} "
            f"has {got}; remove {key}"
        )
