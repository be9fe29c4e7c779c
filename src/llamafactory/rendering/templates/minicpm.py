"""Templates of the CPM and MiniCPM models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, MediaTokens, Template
from llamafactory.rendering.templates.chatml import FRAME, TOOL_FRAME

CPM = Template(
    name="cpm",
    user=("<用户>", CONTENT),
    generation=("<AI>",),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
)

CPM3 = replace(TOOL_FRAME, name="cpm3", prefix=(BOS,))
CPM4 = replace(CPM3, name="cpm4")

MINICPM_V = replace(
    FRAME,
    name="minicpm_v",
    default_system="You are a helpful assistant.",
    media=MediaTokens("minicpm_v", image="<image>", video="<video>"),
)
MINICPM_V_4_6 = replace(
    MINICPM_V, name="minicpm_v_4_6", media=MediaTokens("minicpm_v_4_6", image="<image>", video="<video>")
)
MINICPM_O = replace(
    MINICPM_V,
    name="minicpm_o",
    default_system=("You are a helpful assistant. You can accept audio and text input and output voice and text."),
    media=replace(MINICPM_V.media, audio="<audio>"),
)

TEMPLATES = (CPM, CPM3, CPM4, MINICPM_V, MINICPM_V_4_6, MINICPM_O)
