"""Quantized bases: one file per `quantization_method`, for weights quantized while loading and for stored ones.

Every file defines `FACTS` and `build(config, hf_config, *, dtype, trainable) -> Quantizer`. dtype: format of the
weights that stay as they are, and of computation. A checkpoint that is stored quantized decides for itself
(`stored_settings(hf_config)`); only otherwise do `quantization_bit` and `quantization_method` count. A file may define
`require_packages()`, which raises MissingPackageError, and `replace_weight(layer, weight) -> bool`, which quantizes one
anew where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import PreTrainedModel

from llamafactory.parts import Family

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig as RunConfig

QUANTIZERS = Family("quantization_method", "llamafactory.models.quantization", ("FACTS", "build"))
_MARK = "_llamafactory_quantization"
_STORED_NAMES = {"bitsandbytes": "bnb"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the linear weights of a loaded base are held. method: the part's name. bits: width of one weight.

    details: what else belongs to the format, such as "nf4, double". stored: the checkpoint came like that. folder: of
    the plain weights it was made from.
    """

    method: str
    bits: float
    details: str = ""
    stored: bool = False
    folder: Path | None = None

    def describe(self) -> str:
        """Such as "bnb 4-bit (nf4, double)"."""
        return f"{self.method} {self.bits:g}-bit" + (f" ({self.details})" if self.details else "")


def unchanged(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it was loaded."""
    return model


@dataclass(frozen=True, slots=True)
class Quantizer:
    """What a part does to a base.

    result: what the loaded base is; None where the weights are plain again after loading. options: arguments for
    from_pretrained. finish: changes the loaded model. note: one sentence for the log. learns: adapters on the base can
    be trained.
    """

    result: Quantization | None
    note: str
    options: Mapping[str, object] = field(default_factory=dict)
    finish: Callable[[PreTrainedModel], PreTrainedModel] = unchanged
    learns: bool = True


def stored_settings(hf_config: PretrainedConfig) -> Mapping[str, object] | None:
    """The quantization a checkpoint declares, None for a plain one."""
    declared = getattr(hf_config, "quantization_config", None)
    declared = declared or getattr(hf_config.get_text_config(), "quantization_config", None)
    if not declared:
        return None
    return declared if isinstance(declared, Mapping) else declared.to_dict()


def part_name(settings: Mapping[str, object]) -> str:
    """The part that reads a checkpoint with these settings."""
    method = settings.get("quant_method")
    named = str(getattr(method, "value", method))
    return _STORED_NAMES.get(named, named)


def mark(model: PreTrainedModel, quantization: Quantization | None, folder: Path) -> None:
    """Remember with a base loaded from `folder` how it is quantized."""
    if quantization is not None and not quantization.stored:
        quantization = replace(quantization, folder=folder)
    setattr(model, _MARK, quantization)


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model; a quantized one was loaded onto the device of its process and stays there."""
    return model if quantization_of(model) is not None else model.to(device)


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """A context in which transformers' trainer takes a quantized base without an adapter, only to evaluate it."""
    hidden = isinstance(model, PreTrainedModel) and getattr(model, "is_quantized", False)
    if hidden:
        model.is_quantized = False  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            model.is_quantized = True  # type: ignore[assignment]


def quantization_of(model: nn.Module) -> Quantization | None:
    """How the base of `model` is quantized, None for plain weights; also of models that were loaded elsewhere."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if hasattr(base, _MARK):
        found = getattr(base, _MARK)
        assert found is None or isinstance(found, Quantization)
        return found
    if not getattr(base, "is_quantized", False):
        return None
    settings = stored_settings(base.config) or {}
    return Quantization(part_name(settings), 0)
