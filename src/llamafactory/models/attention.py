"""Which attention kernel the model computes with: `flash_attn` translated to the name transformers knows.

Knows option values, installed packages and what a GPU must have for them. Never lets a missing package be replaced by
code fetched from a hub.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

_NAMES = {
    "auto": None,
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}


@dataclass(frozen=True, slots=True)
class _Flash:
    """What FlashAttention needs: its import name, what pip installs, and a compute capability."""

    package: str
    install: str
    capability: tuple[int, int]


_FLASH = {
    "fa2": _Flash("flash_attn", "flash-attn", (8, 0)),
    "fa3": _Flash("flash_attn_interface", "flash-attn-3", (9, 0)),
}


@dataclass(frozen=True, slots=True)
class Device:
    """What the run computes on. capability: of its GPU, None on a CPU. half: queries and keys have 16 bits."""

    capability: tuple[int, int] | None = (9, 0)
    half: bool = True


def find_device(config: RunConfig, dtype: torch.dtype) -> Device:
    """The device of a run whose weights are loaded as `dtype`."""
    half = dtype in {torch.float16, torch.bfloat16} or config.precision != "fp32"
    on_gpu = torch.cuda.is_available() and not config.training.use_cpu
    return Device(torch.cuda.get_device_capability() if on_gpu else None, half)


def choose_attention(
    flash_attn: str, hf_config: PretrainedConfig, device: Device | None = None
) -> tuple[str | None, str | None]:
    """Return (implementation, notice): the name for `attn_implementation`, None to leave the model's own choice.

    FlashAttention that cannot run leaves the model's choice and yields a notice. Raises ConfigError for an unknown
    value.
    """
    if flash_attn not in _NAMES:
        raise ConfigError(f"flash_attn: {flash_attn!r} is not one of {', '.join(_NAMES)}")
    if flash_attn in _FLASH and (why := _obstacle(_FLASH[flash_attn], device or Device())):
        return None, f"flash_attn: {flash_attn} has no effect because {why}; the model's default attention is used"
    override = family_facts(hf_config).attention.get(flash_attn)
    if override is not None and flash_attn != "auto":
        return override, f"flash_attn: {hf_config.model_type} is computed with {override!r} instead of {flash_attn!r}"
    return override or _NAMES[flash_attn], None


def _obstacle(flash: _Flash, device: Device) -> str | None:
    """Why this FlashAttention cannot run here; None when it can."""
    if device.capability is None:
        return "this run uses the CPU and FlashAttention needs a GPU"
    if importlib.util.find_spec(flash.package) is None:
        return f"the package {flash.package!r} is not installed (pip install {flash.install})"
    if device.capability < flash.capability:
        needed, found = (".".join(map(str, version)) for version in (flash.capability, device.capability))
        return f"it needs a GPU of compute capability {needed}, and this one has {found}"
    if not device.half:
        return "it computes in 16 bits alone, and this run is in float32 (set bf16: true)"
    return None
