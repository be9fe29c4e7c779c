"""An export in fewer bits: calibrate, quantize, write, read back, and say how far the answers moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamafactory.config import RunConfig
from llamafactory.data.calibration import calibration_windows
from llamafactory.errors import ConfigError, ModelError
from llamafactory.logs import get_logger
from llamafactory.models.build import reload_model
from llamafactory.models.packing import PACKINGS, Samples, Target, largest_difference
from llamafactory.models.quantization import quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = get_logger(__name__)


def prepare_packing(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """Calibration samples, empty for an export in plain weights; raises what stops a quantized one before a model is
    loaded."""
    if config.export.export_quantization_bit is None:
        return ()
    method = config.export.export_quantization_method
    PACKINGS.load(method).prepare(config)
    samples = calibration_windows(config, tokenizer)
    logger.info("%s: %d calibration samples of %d tokens", method, len(samples), len(samples[0]))
    return samples


def refuse_packed(model: PreTrainedModel, config: RunConfig) -> None:
    """Raise ConfigError for a model that is quantized already: there is nothing to convert or to round."""
    held = quantization_of(model)
    if held is not None and (held.stored or config.export.export_quantization_bit is not None):
        raise ConfigError(
            f"model_name_or_path: {config.model.model_name_or_path!r} is quantized already ({held.describe()}), and "
            "exporting would only copy or spoil it; copy its folder, or export the unquantized model"
        )


@torch.no_grad()
def write_quantized(
    model: PreTrainedModel, folder: Path, config: RunConfig, *, samples: Samples, target: Target, probe_ids: Tensor
) -> None:
    """Quantize the weights of `model` into `folder`, read them back and compare. probe_ids: [B, T].

    Raises ModelError when the answers moved further than rounding explains.
    """
    bits, method = config.export.export_quantization_bit, config.export.export_quantization_method
    assert bits is not None
    before = model(input_ids=probe_ids.to(model.device), use_cache=False).logits.float().cpu()
    dtype = model.dtype
    PACKINGS.load(method).pack(model, folder, samples, bits=bits, target=target)
    packed = reload_model(folder, dtype)
    after = packed(input_ids=probe_ids.to(packed.device), use_cache=False).logits.float().cpu()
    difference = float((after - before).abs().max() / before.abs().max())
    allowed = largest_difference(bits)
    if not difference <= allowed:  # also true for NaN
        raise ModelError(
            f"export_quantization_bit: with {bits} bits the logits differ by {difference:.1e} of the largest, more "
            f"than the {allowed:g} that rounding explains; nothing was exported, use more bits or other calibration "
            "text"
        )
    logger.info("quantized export: logits differ by %.2e of the largest (allowed %g)", difference, allowed)
