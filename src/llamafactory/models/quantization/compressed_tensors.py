"""Checkpoints written by llm-compressor (compressed-tensors), read into plain weights by that package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.facts import READ_ONLY, Facts
from llamafactory.models.quantization import Quantizer
from llamafactory.models.quantization._stored import as_plain_model, packed_settings, require_all

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts("compressed-tensors", clashes=(READ_ONLY,))


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The reader of a stored checkpoint. Raises MissingPackageError."""
    del config, trainable
    settings = packed_settings(hf_config, "compressed-tensors")
    require_all(("compressed_tensors",), "compressed-tensors", install="compressed-tensors")
    hf_config.quantization_config = settings | {"dequantize": True}
    name = str(dtype).removeprefix("torch.")
    return Quantizer(
        None, f"quantization: compressed-tensors weights are read as plain {name} ones", finish=as_plain_model
    )
