"""Checkpoints with MXFP4 experts (GPT-OSS; https://arxiv.org/abs/2310.10537), read into plain weights by transformers.

The model is as large as an unquantized one afterwards, and everything can be done with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.facts import READ_ONLY, Facts
from llamafactory.models.quantization import Quantizer
from llamafactory.models.quantization._stored import as_plain_model, packed_settings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts("MXFP4", clashes=(READ_ONLY,))


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The reader of a stored checkpoint."""
    del config, trainable
    from transformers import Mxfp4Config

    packed_settings(hf_config, "mxfp4")
    name = str(dtype).removeprefix("torch.")
    return Quantizer(
        None,
        f"quantization: mxfp4 experts are read as plain {name} weights",
        {"quantization_config": Mxfp4Config(dequantize=True)},
        as_plain_model,
    )
