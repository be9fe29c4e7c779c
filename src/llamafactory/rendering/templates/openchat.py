"""Templates of the OpenChat models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

OPENCHAT = Template(
    name="openchat",
    user=("GPT4 Correct User: ", CONTENT, EOS),
    generation=("GPT4 Correct Assistant:",),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
)

OPENCHAT_3_6 = replace(
    OPENCHAT,
    name="openchat-3.6",
    user=("<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n", CONTENT, "<|eot_id|>"),
    generation=("<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",),
    stop_words=("<|eot_id|>",),
)

TEMPLATES = (OPENCHAT, OPENCHAT_3_6)
