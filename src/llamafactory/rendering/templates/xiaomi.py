"""Templates of the MiMo models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.templates.qwen import HELPFUL, QWEN3, VISION

MIMO = replace(QWEN3, name="mimo", default_system=HELPFUL)

MIMO_V2 = replace(
    MIMO,
    name="mimo_v2",
    default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
    thought_words=("<think>", "</think>"),
)

MIMO_VL = replace(
    MIMO, name="mimo_vl", default_system="You are MiMo, an AI assistant developed by Xiaomi.", media=VISION
)

TEMPLATES = (MIMO, MIMO_V2, MIMO_VL)
