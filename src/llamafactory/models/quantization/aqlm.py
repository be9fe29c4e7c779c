"""AQLM checkpoints (Egiazarian et al. 2024, arXiv:2401.06118), read by the package aqlm.

Adapters learn on a GPU only: PEFT 0.21 adds to a view of the output in place, and the backward pass of aqlm's CPU
kernel fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from llamafactory.errors import ModelError
from llamafactory.facts import PACKED_WEIGHTS, READ_ONLY, Clash, Facts
from llamafactory.models.quantization import Quantizer
from llamafactory.models.quantization._stored import packed, packed_settings, require_all

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "AQLM",
    clashes=(
        READ_ONLY,
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for aqlm weights",
            "set finetuning_type to lora",
            allowed=("lora", "oft", "full", "freeze"),
        ),
        Clash("use_dora", "DoRA cannot read aqlm weights", "remove use_dora"),
        PACKED_WEIGHTS,
    ),
)


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer of a stored checkpoint. Raises MissingPackageError, and ModelError for training on a CPU."""
    del dtype
    settings = packed_settings(hf_config, "aqlm")
    require_all(("aqlm",), "aqlm", install="'aqlm[gpu,cpu]'")
    if trainable and (config.training.use_cpu or not torch.cuda.is_available()):
        raise ModelError(
            f"model_name_or_path: {config.model.model_name_or_path!r} is stored quantized (aqlm), and adapters on it "
            "cannot be trained on a CPU, because aqlm has no backward pass there; use a GPU, or a bnb or gptq model"
        )
    codes = cast("int", settings.get("num_codebooks", 1)) * cast("int", settings.get("nbits_per_codebook", 16))
    weights = cast("int", settings.get("in_group_size", 8)) * cast("int", settings.get("out_group_size", 1))
    return packed("aqlm", settings, bits=codes / weights)
