"""What the parts share that read weights which were calibrated and packed elsewhere. Knows no single format."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llamafactory.errors import ModelError
from llamafactory.models.quantization import Quantization, Quantizer, stored_settings
from llamafactory.parts import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedModel

_MIN_WORKERS = 4


def packed_settings(hf_config: PretrainedConfig, method: str) -> dict[str, object]:
    """The settings of a checkpoint. Raises ModelError where there is none, as for random weights."""
    found = stored_settings(hf_config)
    if found is None:
        raise ModelError(
            f"quantization_method: {method} is only read from a checkpoint, and this one is not quantized; "
            "use bnb, hqq, eetq or torchao"
        )
    return dict(found)


def require_all(packages: tuple[str, ...], method: str, *, extra: str = "", install: str = "") -> None:
    """Raise MissingPackageError unless every package is there."""
    for package in packages:
        require(package, f"a checkpoint quantized with {method}", extra=extra, install=install)


def require_gptqmodel(needed_by: str) -> None:
    """Raise MissingPackageError unless gptqmodel and optimum are there.

    gptqmodel divides its threads among pools and does not start with fewer than four.
    """
    for package in ("gptqmodel", "optimum"):
        require(package, needed_by, extra="gptq")
    if (os.cpu_count() or 1) < _MIN_WORKERS:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(_MIN_WORKERS))


def packed(method: str, settings: Mapping[str, object], *, bits: float, learns: bool = True) -> Quantizer:
    """The quantizer of a checkpoint whose weights stay packed; transformers reads them by their own settings."""
    group = settings.get("group_size")
    details = f"groups of {group}" if isinstance(group, int) and group > 0 else ""
    result = Quantization(method, bits, details, stored=True)
    return Quantizer(result, f"quantization: {result.describe()}, as stored", learns=learns)


def as_plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model whose weights became plain while they were read be saved as one.

    transformers remembers how it read a model and writes it back the same way: without this, plain weights would be
    saved under the names of packed ones, in a folder that declares no quantization.
    """
    model.__dict__.pop("_weight_conversions", None)
    return model
