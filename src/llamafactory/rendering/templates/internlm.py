"""Templates of the InternLM, InternVL and Intern-S1 models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, MediaTokens, Template
from llamafactory.rendering.templates.chatml import FRAME

INTERN = Template(
    name="intern",
    user=("<|User|>:", CONTENT, "\n"),
    generation=("<|Bot|>:",),
    assistant=(CONTENT, "<eoa>\n"),
    system=("<|System|>:", CONTENT, "\n"),
    prefix=(BOS,),
    default_system=(
        "You are an AI assistant whose name is InternLM (书生·浦语).\n"
        "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
        "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
        "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
        "English and 中文."
    ),
    stop_words=("<eoa>",),
)

INTERN2 = replace(FRAME, name="intern2", prefix=(BOS,), default_system=INTERN.default_system)
INTERN_S1 = replace(
    INTERN2,
    name="intern_s1",
    default_system="",
    media=MediaTokens("intern_vl", image="<image>", video="<video>"),
)
INTERN_VL = replace(
    INTERN_S1,
    name="intern_vl",
    default_system=(
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    ),
)

TEMPLATES = (INTERN, INTERN2, INTERN_S1, INTERN_VL)
