"""Quantizing a loaded model with GPTQ (Frantar et al. 2023, arXiv:2210.17323), by gptqmodel through optimum.

Layer by layer, each weight matrix W is rounded column by column so that ||(W - Q) X||^2 stays smallest for the inputs X
that the calibration samples cause; scales are symmetric, one per group of inputs. The output head and the embeddings
stay as they are, and so do fused expert weights, which are no linear layers. Knows no data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from llamafactory.errors import ConfigError
from llamafactory.logs import notice
from llamafactory.models.modules import has_fused_experts, linear_modules
from llamafactory.models.packing import Samples, Target
from llamafactory.models.quantization._stored import require_gptqmodel
from llamafactory.models.save import save_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

GROUP_SIZES = (128, 64, 32)


def prepare(config: RunConfig) -> None:
    """Raise MissingPackageError unless gptqmodel and optimum are there."""
    del config
    require_gptqmodel("export_quantization_bit")


def pack(model: PreTrainedModel, folder: Path, samples: Samples, *, bits: int, target: Target) -> None:
    """Quantize `model` in place and write its weights into `folder`. Raises ConfigError, CheckpointError."""
    save_weights(quantize_gptq(model, bits, samples), folder, record=target.record, options=target.options)


def group_size(model: PreTrainedModel) -> int:
    """Inputs that share a scale: the largest size that divides those of every layer. Raises ConfigError."""
    named = ((name, model.get_submodule(name)) for name in linear_modules(model))
    layers = {name: layer for name, layer in named if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        for number, side in ((layer.in_features, "inputs"), (layer.out_features, "outputs")):
            if number % GROUP_SIZES[-1]:
                raise ConfigError(
                    f"export_quantization_bit: {name} has {number} {side}, which is no multiple of {GROUP_SIZES[-1]}, "
                    "so its weights cannot be packed; export without quantization"
                )
    return next(size for size in GROUP_SIZES if all(layer.in_features % size == 0 for layer in layers.values()))


def quantize_gptq(model: PreTrainedModel, bits: int, samples: Samples) -> PreTrainedModel:
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
