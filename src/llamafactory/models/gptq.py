"""Quantizing a loaded model with GPTQ (Frantar et al. 2023, arXiv:2210.17323), by gptqmodel through optimum.

Layer by layer, each weight matrix W is rounded column by column so that ||(W - Q) X||^2 stays smallest for the inputs X
that the calibration samples cause; scales are symmetric, one per group of inputs. The output head and the embeddings
stay as they are, and so do fused expert weights, which are no linear layers. Knows no options and no data.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from llamafactory.errors import ConfigError
from llamafactory.logs import notice
from llamafactory.models.modules import has_fused_experts, linear_modules
from llamafactory.parts import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

GROUP_SIZES = (128, 64, 32)
INSTALL = "gptqmodel optimum"
_MIN_WORKERS = 4


def prepare_gptqmodel(needed_by: str) -> None:
    """Check that gptqmodel can be imported. Raises MissingPackageError.

    gptqmodel divides its threads among pools and cannot start with fewer than four.
    """
    for package in ("gptqmodel", "optimum"):
        require(package, needed_by, extra="gptq")
    if (os.cpu_count() or 1) < _MIN_WORKERS:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(_MIN_WORKERS))


def group_size(model: PreTrainedModel) -> int:
    """Inputs that share a scale: the largest size that divides the width of every layer. Raises ConfigError."""
    layers = (model.get_submodule(name) for name in linear_modules(model))
    widths = {layer.in_features for layer in layers if isinstance(layer, nn.Linear)}
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    odd = min(width for width in widths if width % GROUP_SIZES[-1])
    raise ConfigError(
        f"export_quantization_bit: a layer of this model has {odd} inputs, which is no multiple of "
        f"{GROUP_SIZES[-1]}, so GPTQ cannot pack it; export without quantization"
    )


def quantize_gptq(model: PreTrainedModel, bits: int, samples: Sequence[Sequence[int]]) -> PreTrainedModel:
    """Replace the linear layers of `model` by packed ones, ready to be saved. samples: token ids, one list each.

    Returns the same model, in the checkpoint format that gptqmodel, vLLM and transformers read. Raises ConfigError.
    """
    size = group_size(model)
    if has_fused_experts(model):
        notice("export_quantization_bit: the fused expert weights of this model stay as they are")
    from gptqmodel.utils.model import hf_convert_gptq_v2_to_v1_format
    from optimum.gptq import GPTQQuantizer

    rows = [torch.tensor([ids]) for ids in samples]
    calibration = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
    quantizer = GPTQQuantizer(bits=bits, dataset=calibration, group_size=size)
    quantized = quantizer.quantize_model(model)
    quantized, _ = hf_convert_gptq_v2_to_v1_format(
        quantized, quantizer.sym, quantizer.bits, quantizer.quant_linear, quantizer.format, quantizer.meta
    )
    settings = {key: value for key, value in quantizer.to_dict().items() if key != "dataset"}
    quantized.config.quantization_config = settings | {"format": "gptq", "checkpoint_format": "gptq"}
    return quantized
