"""Checkpoints in 8-bit floats with block scales (DeepSeek-V3, Qwen3-FP8, MXFP8), read into plain weights.

The model is as large as an unquantized one afterwards, and everything can be done with it: full training, merging,
exporting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.errors import ModelError
from llamafactory.facts import READ_ONLY, Facts
from llamafactory.models.quantization import Quantizer
from llamafactory.models.quantization._stored import as_plain_model, packed_settings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts("FP8", clashes=(READ_ONLY,))


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The reader of a stored checkpoint. Raises ModelError for packed 4-bit experts."""
    del trainable
    from llamafactory.models.quantization._blocks import METHOD

    settings = packed_settings(hf_config, "fp8")
    if settings.get("expert_dtype") == "fp4":
        raise ModelError(
            f"model_name_or_path: {config.model.model_name_or_path!r} stores its experts in 4-bit floats, which this "
            "version cannot read; give a copy in bf16 or in plain FP8"
        )
    hf_config.quantization_config = {
        "quant_method": METHOD,
        "weight_block_size": settings.get("weight_block_size"),
        "dequantize": True,
    }
    name = str(dtype).removeprefix("torch.")
    return Quantizer(None, f"quantization: fp8 weights are read as plain {name} ones", finish=as_plain_model)
