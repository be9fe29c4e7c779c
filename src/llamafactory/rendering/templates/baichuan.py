"""Templates of the Baichuan models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, Template, Token

BAICHUAN = Template(
    name="baichuan",
    user=(Token("<reserved_102>"), CONTENT),
    generation=(Token("<reserved_103>"),),
    assistant=(CONTENT,),
    efficient_eos=True,
)

BAICHUAN2 = replace(BAICHUAN, name="baichuan2", user=("<reserved_106>", CONTENT), generation=("<reserved_107>",))

TEMPLATES = (BAICHUAN, BAICHUAN2)
