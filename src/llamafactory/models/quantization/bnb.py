"""bitsandbytes: 4 bits as NormalFloat or floats (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) and LLM.int8
(arXiv:2208.07339), on CPU and GPU. Also reads checkpoints that were stored that way.

Embeddings, norms and the output head stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llamafactory import env
from llamafactory.facts import Clash, Facts
from llamafactory.models.quantization import Quantization, Quantizer, stored_settings, unchanged
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

    from llamafactory.config.run import RunConfig

BLOCK_SIZE = 64
FACTS = Facts(
    "bitsandbytes",
    clashes=(
        Clash("quantization_bit", "bnb has 4 or 8 bits", "choose one of these", allowed=(4, 8)),
        Clash(
            "finetuning_type",
            "PEFT has no such adapter for bnb weights",
            "set finetuning_type to lora, oft, vera or ia3",
            values=("loha", "lokr"),
        ),
        Clash("fsdp", "8-bit weights cannot be sharded", "use 4 bits", when=(("quantization_bit", (8,)),)),
    ),
)


def require_packages() -> None:
    """Raise MissingPackageError unless bitsandbytes is installed."""
    require("bitsandbytes", "a base quantized by bitsandbytes (quantization_method: bnb)", extra="bitsandbytes")


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer for `quantization_bit` 4 or 8, or for a stored checkpoint. Raises MissingPackageError."""
    require_packages()
    stored = stored_settings(hf_config)
    if stored is None:
        settings = _as_asked(config, dtype)
        options: dict[str, object] = {"quantization_config": settings}
    else:
        settings, options = _as_stored(stored, dtype), {}
        hf_config.quantization_config = settings.to_dict()
    result = _describe(settings, stored=stored is not None)
    if not _is_sharded(config):
        options["device_map"] = _device_map(config, trainable=trainable)
    return Quantizer(
        result,
        f"quantization: {result.describe()}, computed in {str(dtype).removeprefix('torch.')}",
        options,
        _keep_layout if trainable else unchanged,
    )


def round_as(weight: Tensor, words: str) -> Tensor:
    """`weight` after quantizing it and back, in fp32. words: the format as `Quantization.describe` names it."""
    require_packages()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    kind, double = "fp4" if "fp4" in words else "nf4", "double" in words
    packed, state = quantize_4bit(weight.float(), quant_type=kind, compress_statistics=double, blocksize=BLOCK_SIZE)
    return dequantize_4bit(packed, state).to(torch.float32)


def replace_weight(layer: nn.Module, weight: Tensor) -> bool:
    """Quantize `weight` [out, in] anew into a 4-bit layer, in place and in its own format; False for other layers."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    if not isinstance(layer, Linear4bit):
        return False
    old: Any = layer.weight
    new: Any = Params4bit(
        weight.to("cpu", torch.float32),
        requires_grad=False,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        blocksize=old.blocksize,
        quant_storage=old.quant_storage,
        module=layer,
    )
    layer.weight = new.to(old.device)
    new.quant_state.dtype = old.quant_state.dtype
    return True


def _as_asked(config: RunConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    wanted = config.quantization
    if wanted.quantization_bit == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=wanted.double_quantization,
        bnb_4bit_quant_type=wanted.quantization_type,
        # Sharding flattens weights of one format into one tensor, so packed ones borrow that of the others.
        bnb_4bit_quant_storage=dtype if _is_sharded(config) else torch.uint8,
    )


def _as_stored(stored: Mapping[str, object], dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig.from_dict(dict(stored))
    settings.bnb_4bit_compute_dtype = dtype
    return settings


def _describe(settings: BitsAndBytesConfig, *, stored: bool) -> Quantization:
    if settings.load_in_8bit:
        return Quantization("bnb", 8, "int8", stored)
    details = settings.bnb_4bit_quant_type + (", double" if settings.bnb_4bit_use_double_quant else "")
    return Quantization("bnb", 4, details, stored)


def _device_map(config: RunConfig, *, trainable: bool) -> str | dict[str, object]:
    """Everything on the device of this process; spread where `quantization_device_map` asks for it."""
    if config.training.use_cpu or not torch.accelerator.is_available():
        return {"": "cpu"}
    if config.quantization.quantization_device_map == "auto" and not trainable:
        return "auto"
    return {"": torch.device(torch.accelerator.current_accelerator().type, env.local_rank())}  # type: ignore[union-attr]


def _is_sharded(config: RunConfig) -> bool:
    training = config.training
    launched = env.is_enabled("ACCELERATE_USE_FSDP") or env.is_enabled("ACCELERATE_USE_DEEPSPEED")
    return bool(training.fsdp or training.deepspeed or launched)


def _keep_layout(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the layout of 4-bit weights as it is, for training.

    On CPUs with AVX512-BF16 bitsandbytes packs a weight anew at the first forward in evaluation mode, and the backward
    pass of a later step would read the new layout as the old one: wrong gradients, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
