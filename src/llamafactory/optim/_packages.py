"""Packages behind the optimizers that transformers offers by name. Knows nothing else."""

from __future__ import annotations

import importlib.util

from llamafactory.errors import MissingPackageError

_BITSANDBYTES = (
    "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
_PACKAGES = {
    **dict.fromkeys(_BITSANDBYTES, ("bitsandbytes", "'llamafactory[bitsandbytes]'")),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), ("schedulefree",) * 2),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
}
"""Name in `optim` -> import name of the package, and what to install."""


def require_package(optim: str) -> None:
    """Raise MissingPackageError with the install command unless the package behind a name is there."""
    package, requirement = _PACKAGES.get(optim, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"optim: {optim} needs the package {package!r}, which is not installed; "
            f"install it with: pip install {requirement}"
        )
