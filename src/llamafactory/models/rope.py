"""Longer contexts by scaled rotary positions: `rope_scaling` written into a transformers 5 configuration.

Linear: positions divided by the factor (Chen et al. 2023, arXiv:2306.15595). Dynamic: the base grows with the sequence
(NTK-aware). YaRN: Peng et al. 2023, arXiv:2309.00071. Llama 3: wavelength bands of the Llama 3.1 release.
Knows configuration fields only; the angles are computed by transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafactory.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INFERENCE_FACTOR = 2.0
_KEEP = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
_LAYERS = "full_attention"


@dataclass(frozen=True, slots=True)
class RopeChange:
    """rope_parameters, max_position_embeddings: to be set on the text configuration. line: for the log."""

    rope_parameters: dict[str, object]
    max_position_embeddings: int
    line: str


def scale_rope(method: str, hf_config: PretrainedConfig, *, cutoff_len: int, trainable: bool) -> RopeChange | None:
    """Work out scaled rotary parameters; None when `cutoff_len` already fits (training only).

    factor = ceil(cutoff_len / max_position_embeddings) in training, 2.0 at inference. `rope_theta` is kept. Raises
    ModelError when the model has no rotary positions.
    """
    text = hf_config.get_text_config()
    current = getattr(text, "rope_parameters", None)
    length = getattr(text, "max_position_embeddings", None)
    if not current or not length:
        raise ModelError(f"rope_scaling: {hf_config.model_type} has no rotary positions to scale; remove rope_scaling")
    if not trainable and _scaled_alike(current, method):
        return None
    if trainable and cutoff_len <= length:
        return None
    factor = float(math.ceil(cutoff_len / length)) if trainable else INFERENCE_FACTOR
    per_layer = _LAYERS in current
    changed = _parameters(method, current[_LAYERS] if per_layer else current, factor=factor, length=length)
    # transformers scales "dynamic" against max_position_embeddings itself: raising it would switch the scaling off.
    new_length = length if method == "dynamic" else int(length * factor)
    line = f"rope_scaling: {method}, factor {factor:g}, positions {length} -> {int(length * factor)}"
    return RopeChange({**current, _LAYERS: changed} if per_layer else changed, new_length, line)


def _scaled_alike(current: dict[str, object], method: str) -> bool:
    """True when a saved model already carries this scaling, so that loading it does not scale twice."""
    inner = current.get(_LAYERS, current)
    return isinstance(inner, dict) and inner.get("rope_type") == method


def _parameters(method: str, current: dict[str, object], *, factor: float, length: int) -> dict[str, object]:
    values: dict[str, object] = {key: current[key] for key in _KEEP if key in current}
    values |= {"rope_type": method, "factor": factor}
    if method in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = length
    if method == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return values


def set_rope(hf_config: PretrainedConfig, rope_parameters: dict[str, object], max_position_embeddings: int) -> None:
    """Write rotary parameters into a transformers configuration, in place."""
    text = hf_config.get_text_config()
    text.max_position_embeddings = max_position_embeddings
    text.rope_parameters = dict(rope_parameters)
