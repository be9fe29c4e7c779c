"""Templates of the LLaVA models: those of their language models, and media tokens."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import MediaTokens
from llamafactory.rendering.templates.llama import LLAMA3
from llamafactory.rendering.templates.mistral import MISTRAL
from llamafactory.rendering.templates.plain import VICUNA
from llamafactory.rendering.templates.qwen import QWEN
from llamafactory.rendering.templates.yi import YI

LLAVA = replace(VICUNA, name="llava", replace_jinja_template=False, media=MediaTokens("llava", image="<image>"))

_NEXT = MediaTokens("llava_next", image="<image>")
LLAVA_NEXT = replace(LLAVA, name="llava_next", media=_NEXT)
LLAVA_NEXT_LLAMA3 = replace(LLAMA3, name="llava_next_llama3", text_end="", media=_NEXT)
LLAVA_NEXT_MISTRAL = replace(MISTRAL, name="llava_next_mistral", media=_NEXT)
LLAVA_NEXT_QWEN = replace(QWEN, name="llava_next_qwen", default_system="You are a helpful assistant.", media=_NEXT)
LLAVA_NEXT_YI = replace(YI, name="llava_next_yi", media=_NEXT)

_NEXT_VIDEO = MediaTokens("llava_next_video", image="<image>", video="<video>")
LLAVA_NEXT_VIDEO = replace(LLAVA, name="llava_next_video", media=_NEXT_VIDEO)
LLAVA_NEXT_VIDEO_MISTRAL = replace(MISTRAL, name="llava_next_video_mistral", media=_NEXT_VIDEO)
LLAVA_NEXT_VIDEO_YI = replace(YI, name="llava_next_video_yi", media=_NEXT_VIDEO)

VIDEO_LLAVA = replace(LLAVA, name="video_llava", media=MediaTokens("video_llava", image="<image>", video="<video>"))

TEMPLATES = (
    LLAVA, LLAVA_NEXT, LLAVA_NEXT_LLAMA3, LLAVA_NEXT_MISTRAL, LLAVA_NEXT_QWEN, LLAVA_NEXT_YI, LLAVA_NEXT_VIDEO,
    LLAVA_NEXT_VIDEO_MISTRAL, LLAVA_NEXT_VIDEO_YI, VIDEO_LLAVA,
)  # fmt: skip
