"""torchao: weights rounded to 8 bits with one scale per output channel, or to 4 bits in groups of 32.

8 bits halve the memory of bf16 weights, on CPU and GPU, and adapters learn on them. The 4-bit form keeps one weight per
byte: it shows what 4 bits cost in quality, and saves no more memory than 8. transformers trains nothing on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llamafactory.facts import PACKED_WEIGHTS, Clash, Facts
from llamafactory.models.quantization import Quantization, Quantizer, stored_settings
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import PretrainedConfig, TorchAoConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "torchao",
    clashes=(
        Clash("quantization_bit", "torchao has 4 or 8 bits", "choose one of these", allowed=(4, 8)),
        Clash(
            "do_train",
            "adapters learn on 8-bit torchao weights only",
            "set quantization_bit to 8",
            when=(("quantization_bit", (4,)),),
        ),
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for torchao weights",
            "set finetuning_type to lora",
            allowed=("lora",),
        ),
        PACKED_WEIGHTS,
    ),
)
GROUP_SIZE = 32


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer for `quantization_bit` 4 or 8, or for a stored checkpoint. Raises MissingPackageError."""
    del trainable
    require("torchao", "a model quantized by torchao (quantization_method: torchao)", extra="torchao")
    if stored_settings(hf_config) is not None:
        return Quantizer(Quantization("torchao", 0, stored=True), "quantization: torchao, as stored")
    bits = config.quantization.quantization_bit
    assert bits is not None
    result = Quantization("torchao", bits, "int8" if bits == 8 else f"groups of {GROUP_SIZE}, one weight per byte")
    note = f"quantization: {result.describe()}, computed in {str(dtype).removeprefix('torch.')}"
    return Quantizer(result, note, {"quantization_config": _settings(bits)}, learns=bits == 8)


def _settings(bits: int) -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    if bits == 8:
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(GROUP_SIZE))
    )
