"""Weights stored as 8-bit floats with one scale per block, turned into plain ones while they are read.

W[i, j] = q[i, j] * s[i // rows, j // columns], the form of DeepSeek-V3 (arXiv:2412.19437, section 3.3.2). A layer whose
size is no multiple of the block ends in smaller blocks; transformers 5.23 divides the layer evenly instead, which fails
for most such layers and gives wrong weights for the others, so the conversion is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "llamafactory_fp8_blocks"
"""The name under which transformers finds the quantizer below."""
_SCALE = "_scale_inv"
_BIAS = 127  # of an exponent stored in one byte


def dequantize_blocks(codes: Tensor, scales: Tensor, block: Sequence[int] | None, dtype: torch.dtype) -> Tensor:
    """codes [rows, columns] times the scales [rows / block[0], columns / block[1]], rounded up, or one scale for all.

    scales: factors, or exponents in single bytes (2^(byte - 127)).
    """
    factors = torch.exp2(scales.float() - _BIAS) if scales.dtype == torch.uint8 else scales.float()
    if factors.numel() > 1:
        rows, columns = codes.shape[-2:]
        high, wide = block or (-(-rows // factors.shape[-2]), -(-columns // factors.shape[-1]))
        factors = factors.repeat_interleave(high, -2)[..., :rows, :].repeat_interleave(wide, -1)[..., :columns]
        if factors.shape[-2:] != codes.shape[-2:]:
            raise ValueError(f"scales {list(scales.shape)} do not fit blocks of {high} x {wide} in {list(codes.shape)}")
    return (codes.float() * factors).to(dtype)


@register_quantization_config(METHOD)
class BlockSettings(QuantizationConfigMixin):
    """What transformers must know of such a checkpoint. block size: rows, columns; None: as the scales say."""

    dequantize = True

    def __init__(self, weight_block_size: Sequence[int] | None = None, **ignored: object) -> None:
        del ignored
        self.quant_method = METHOD
        self.weight_block_size = weight_block_size


class Dequantize(ConversionOps):
    """Turns every weight that has a scale beside it into a plain one, before anything else is done with it."""

    def __init__(self, hf_quantizer: BlockReader) -> None:
        self.hf_quantizer = hf_quantizer  # by this attribute transformers knows not to cast the scales before

    def convert(
        self,
        input_dict: Mapping[str, Tensor | list[Tensor]],
        *,
        full_layer_name: str,
        model: PreTrainedModel,
        **context: object,
    ) -> dict[str, list[Tensor]]:
        """input_dict: name pattern -> the tensors that match it. Raises ValueError when scales and weights disagree."""
        del context
        dtype = model.get_parameter_or_buffer(full_layer_name).dtype
        found = {name: tensors if isinstance(tensors, list) else [tensors] for name, tensors in input_dict.items()}
        plain = {
            name: self._plain(tensors, found.get(name + _SCALE), dtype)
            for name, tensors in found.items()
            if not name.endswith((_SCALE, "activation_scale"))
        }
        return {full_layer_name: plain["weight"]} if "weight" in plain else plain

    def _plain(self, codes: list[Tensor], scales: list[Tensor] | None, dtype: torch.dtype) -> list[Tensor]:
        if scales is None:
            return [tensor.to(dtype) for tensor in codes]
        block = self.hf_quantizer.quantization_config.weight_block_size
        return [dequantize_blocks(code, scale, block, dtype) for code, scale in zip(codes, scales, strict=True)]


@register_quantizer(METHOD)
class BlockReader(HfQuantizer):
    """Reads such a checkpoint into a plain model, fused experts included."""

    requires_calibration = False
    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", f"weight{_SCALE}", "activation_scale"]}

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"dequantize": Dequantize}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
