"""torchao: weights rounded to 8 bits with one scale per output channel, or to 4 bits in groups of 32.

8 bits halve the memory of bf16 weights, on CPU and GPU, and adapters learn on them. The 4-bit form keeps one weight per
byte: it shows what 4 bits cost in quality, and saves no more memory than 8. transformers trains nothing on it.

With `quantization_aware` the whole weights are trained, and every forward pass uses them as they will be once rounded
(arXiv:1712.05877, with the gradient passed through the rounding). They are saved whole; loading them with the same
`quantization_bit` gives the model that was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llamafactory.facts import PACKED_WEIGHTS, Clash, Facts
from llamafactory.models.modules import linear_modules
from llamafactory.models.quantization import Quantization, Quantizer, stored_settings
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, TorchAoConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "torchao",
    clashes=(
        Clash("quantization_bit", "torchao has 4 or 8 bits", "choose one of these", allowed=(4, 8)),
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for torchao weights",
            "set finetuning_type to lora",
            values=("oft", "vera", "ia3", "loha", "lokr", "adalora"),
        ),
        PACKED_WEIGHTS,
    ),
)
GROUP_SIZE = 32


def require_packages() -> None:
    """Raise MissingPackageError unless torchao is installed."""
    require("torchao", "a model quantized by torchao (quantization_method: torchao)", extra="torchao")


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer for `quantization_bit` 4 or 8, or for a stored checkpoint. Raises MissingPackageError."""
    require_packages()
    if stored_settings(hf_config) is not None:
        return Quantizer(Quantization("torchao", 0, stored=True), "quantization: torchao, as stored")
    bits, dtype_name = config.quantization.quantization_bit, str(dtype).removeprefix("torch.")
    assert bits is not None
    if trainable and config.quantization.quantization_aware:
        note = f"quantization: weights are trained in view of torchao {bits}-bit"
        return Quantizer(None, note, finish=lambda model: anticipate(model, bits))
    result = Quantization("torchao", bits, "int8" if bits == 8 else f"groups of {GROUP_SIZE}, one weight per byte")
    note = f"quantization: {result.describe()}, computed in {dtype_name}"
    return Quantizer(result, note, {"quantization_config": _settings(bits)}, learns=bits == 8)


def anticipate(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Make the linear layers use their weights as `_settings(bits)` would round them, in place; names stay."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    named = set(linear_modules(model))
    code = getattr(torch, f"int{bits}")
    size = {"granularity": "per_channel"} if bits == 8 else {"group_size": GROUP_SIZE}
    rounding = IntxFakeQuantizeConfig(code, is_symmetric=True, **size)
    quantize_(model, QATConfig(weight_config=rounding, step="prepare"), lambda _, name: name in named)
    return model


def _settings(bits: int) -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    if bits == 8:
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(
        IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(GROUP_SIZE))
    )
