"""Which attention code a model runs: `flash_attn` translated to the name transformers knows.

Knows option values and installed packages. Never lets a missing package be replaced by code fetched from a hub.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NAMES = {
    "auto": None,
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}
_PACKAGES = {"fa2": ("flash_attn", "flash-attn"), "fa3": ("flash_attn_interface", "flash-attn-3")}


def choose_attention(
    flash_attn: str, hf_config: PretrainedConfig, *, on_gpu: bool = True
) -> tuple[str | None, str | None]:
    """Return (implementation, notice): the name for `attn_implementation`, None to leave the model's own choice.

    FlashAttention without its package or without a GPU leaves the model's choice and yields a notice. Raises
    ConfigError for an unknown value.
    """
    if flash_attn not in _NAMES:
        raise ConfigError(f"flash_attn: {flash_attn!r} is not one of {', '.join(_NAMES)}")
    if flash_attn in _PACKAGES and not on_gpu:
        return None, (
            f"flash_attn: {flash_attn} has no effect because this run uses the CPU and FlashAttention needs a GPU; "
            "the model's default attention is used"
        )
    if flash_attn in _PACKAGES:
        package, install = _PACKAGES[flash_attn]
        if importlib.util.find_spec(package) is None:
            return None, (
                f"flash_attn: {flash_attn} has no effect because the package {package!r} is not installed "
                f"(pip install {install}); the model's default attention is used"
            )
    override = family_facts(hf_config).attention.get(flash_attn)
    if override is not None and flash_attn != "auto":
        return override, f"flash_attn: {hf_config.model_type} is computed with {override!r} instead of {flash_attn!r}"
    return override or _NAMES[flash_attn], None
