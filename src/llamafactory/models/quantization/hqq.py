"""HQQ: half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog), without calibration.

Weights are rounded in groups of 64 along the rows (axis 0), each group with its own scale and zero point in the format
of computation. 8, 4, 3, 2 and 1 bits are packed; hqq stores 6 and 5 bits in one byte per weight, so they save no more
memory than 8. transformers 5 has no loader for it, so the linear layers are replaced here, one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from llamafactory import env
from llamafactory.facts import PACKED_WEIGHTS, Clash, Facts
from llamafactory.models.inspect import PLAIN_SIZE
from llamafactory.models.modules import linear_modules
from llamafactory.models.quantization import Quantization, Quantizer
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "HQQ",
    clashes=(
        Clash("quantization_bit", "hqq has 1, 2, 3, 4, 5, 6 or 8 bits", "choose one of these",
              allowed=(1, 2, 3, 4, 5, 6, 8)),
        Clash("finetuning_type", "PEFT has no such adapter for hqq weights", "set finetuning_type to lora",
              allowed=("lora", "full", "freeze")),
        Clash("ZeRO-3", "its packed weights only fit together as a whole", "use ZeRO-2, or 4-bit bnb"),
        PACKED_WEIGHTS,
    ),
)  # fmt: skip
GROUP_SIZE = 64


def require_packages() -> None:
    """Raise MissingPackageError unless hqq is installed."""
    require("hqq", "quantization_method: hqq", extra="hqq")


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer for `quantization_bit`. Raises MissingPackageError."""
    del hf_config, trainable
    require_packages()
    bits = config.quantization.quantization_bit
    assert bits is not None
    device = _device(config)
    return Quantizer(
        Quantization("hqq", bits, f"groups of {GROUP_SIZE}"),
        f"quantization: hqq {bits}-bit (groups of {GROUP_SIZE}), computed in {str(dtype).removeprefix('torch.')}",
        {"device_map": None},  # the whole weights stay in CPU memory, only packed ones reach the device
        lambda model: quantize_linears(model, bits, dtype, device),
    )


def quantize_linears(model: PreTrainedModel, bits: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Replace all linear layers but the output head, and move the rest to `device`; one whole layer is freed at a time.

    Layers whose number of weights is no multiple of the group size stay as they are. The same weights give the same
    bits on the same kind of device.
    """
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=bits, group_size=GROUP_SIZE, axis=0)
    for name in linear_modules(model):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.weight.numel() % GROUP_SIZE == 0:
            size = layer.to(device).weight.numel()
            packed = HQQLinear(layer, settings, compute_dtype=dtype, device=str(device))
            setattr(packed.W_q, PLAIN_SIZE, size)
            model.set_submodule(name, packed.requires_grad_(False))
    return model.to(device)


def _device(config: RunConfig) -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if config.training.use_cpu or accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, env.local_rank())
