"""Templates of the TeleChat models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, EOS, Template

TELECHAT = Template(
    name="telechat",
    user=("<_user>", CONTENT),
    generation=("<_bot>",),
    assistant=(CONTENT, EOS),
    system=("<_system>", CONTENT, "<_end>"),
)

TELECHAT2 = replace(
    TELECHAT,
    name="telechat2",
    system=("<_system>", CONTENT),
    default_system=(
        "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和中国电信人工智能研究院"
        "（TeleAI）研发的人工智能助手。"
    ),
)

TEMPLATES = (TELECHAT, TELECHAT2)
