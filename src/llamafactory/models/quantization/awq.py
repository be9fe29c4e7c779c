"""AWQ checkpoints (Lin et al. 2024, arXiv:2306.00978), read by gptqmodel."""

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
    "AWQ",
    clashes=(
        READ_ONLY,
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for awq weights",
            "set finetuning_type to lora",
            allowed=("lora", "oft", "full", "freeze"),
        ),
        Clash("use_dora", "DoRA cannot read awq weights", "remove use_dora"),
        PACKED_WEIGHTS,
    ),
)


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer of a stored checkpoint. Raises MissingPackageError."""
    del config, dtype
    settings = packed_settings(hf_config, "awq")
    require_gptqmodel("a checkpoint quantized with awq")
    if trainable:
        settings["backend"] = "auto_trainable"
    hf_config.quantization_config = settings
    return packed("awq", settings, bits=cast("int", settings.get("bits", settings.get("w_bit", 4))))
