"""GPTQ checkpoints (Frantar et al. 2023, arXiv:2210.17323), read by gptqmodel; `export_quantization_bit` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llamafactory.facts import PACKED_WEIGHTS, READ_ONLY, Clash, Facts
from llamafactory.models.quantization import Quantizer
from llamafactory.models.quantization._stored import packed, packed_settings, require_gptqmodel

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "GPTQ",
    clashes=(
        READ_ONLY,
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for gptq weights",
            "set finetuning_type to lora",
            allowed=("lora", "oft", "full", "freeze"),
        ),
        Clash("use_dora", "DoRA cannot read gptq weights", "remove use_dora"),
        PACKED_WEIGHTS,
    ),
)


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer of a stored checkpoint. Raises MissingPackageError.

    A training run takes a kernel with a backward pass; the exllama kernels have none.
    """
    del config, dtype
    settings = packed_settings(hf_config, "gptq")
    require_gptqmodel("a checkpoint quantized with gptq")
    if trainable:
        settings["backend"] = "auto_trainable"
    hf_config.quantization_config = settings
    return packed("gptq", settings, bits=cast("int", settings["bits"]))
