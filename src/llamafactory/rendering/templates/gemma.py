"""Templates of the Gemma and PaliGemma models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, MediaTokens, Template

GEMMA = Template(
    name="gemma",
    user=("<start_of_turn>user\n", CONTENT, "<end_of_turn>\n"),
    generation=("<start_of_turn>model\n",),
    assistant=(CONTENT, "<end_of_turn>\n"),
    system=(CONTENT, "\n\n"),
    observation=("<start_of_turn>tool\n", CONTENT, "<end_of_turn>\n"),
    prefix=(BOS,),
    system_style="merged",
    stop_words=("<end_of_turn>",),
    replace_eos=True,
)

GEMMA2 = replace(GEMMA, name="gemma2", stop_words=("<eos>", "<end_of_turn>"), efficient_eos=True, replace_eos=False)
GEMMA3 = replace(GEMMA, name="gemma3", media=MediaTokens("gemma3", image="<image_soft_token>"))
GEMMA3N = replace(
    GEMMA,
    name="gemma3n",
    media=MediaTokens("gemma3n", image="<image_soft_token>", audio="<audio_soft_token>"),
)

GEMMA4 = Template(
    name="gemma4",
    user=("<|turn>user\n", CONTENT, "<turn|>\n"),
    generation=("<|turn>model\n",),
    assistant=(CONTENT, "<turn|>\n"),
    system=("<|turn>system\n<|think|>", CONTENT, "<turn|>\n"),
    observation=("<|turn>tool\n", CONTENT, "<turn|>\n"),
    function=("<|tool>", CONTENT, "<tool|>"),
    prefix=(BOS,),
    default_system="You are a helpful assistant.",
    stop_words=("<turn|>",),
    thought_words=("<|channel>thought\n", "<channel|>"),
    tool_format="gemma4",
    replace_eos=True,
    reasoning=True,
    media=MediaTokens("gemma4", image="<|image|>", video="<|video|>"),
)

GEMMA4N = replace(GEMMA4, name="gemma4n", media=replace(GEMMA4.media, audio="<|audio|>"))

PALIGEMMA = Template(
    name="paligemma",
    user=(CONTENT, "\n"),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
    system_style="merged",
    media=MediaTokens("paligemma", image="<image>"),
)

PALIGEMMA_CHAT = replace(GEMMA, name="paligemma_chat", system=(CONTENT,), media=PALIGEMMA.media)

TEMPLATES = (GEMMA, GEMMA2, GEMMA3, GEMMA3N, GEMMA4, GEMMA4N, PALIGEMMA, PALIGEMMA_CHAT)
