"""Formats of plain text: no control tokens but the tokenizer's own."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

ALPACA = Template(
    name="alpaca",
    user=("### Instruction:\n", CONTENT, "\n\n"),
    generation=("### Response:\n",),
    assistant=(CONTENT, EOS, "\n\n"),
    default_system=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    ),
    replace_jinja_template=True,
)

AQUILA = Template(
    name="aquila",
    user=("Human: ", CONTENT, "###"),
    generation=("Assistant:",),
    assistant=(CONTENT, "###"),
    system=("System: ", CONTENT, "###"),
    default_system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
    stop_words=("</s>",),
    efficient_eos=True,
)

BELLE = Template(
    name="belle",
    user=("Human: ", CONTENT, "\n\n"),
    generation=("Belle: ",),
    assistant=(CONTENT, EOS, "\n\n"),
    prefix=(BOS,),
)

DEFAULT = Template(
    name="default",
    user=("Human: ", CONTENT, EOS, "\n"),
    generation=("Assistant:",),
    assistant=(CONTENT, EOS, "\n"),
    system=("System: ", CONTENT, EOS, "\n"),
    replace_jinja_template=True,
)

EMPTY = Template(name="empty", user=(CONTENT,), assistant=(CONTENT,), efficient_eos=True)

FEWSHOT = Template(
    name="fewshot", user=(CONTENT,), assistant=(CONTENT, "\n\n"), efficient_eos=True, replace_jinja_template=True
)

SOLAR = Template(
    name="solar",
    user=("### User:\n", CONTENT, "\n\n"),
    generation=("### Assistant:\n",),
    assistant=(CONTENT,),
    system=("### System:\n", CONTENT, "\n\n"),
    efficient_eos=True,
)

VICUNA = Template(
    name="vicuna",
    user=("USER: ", CONTENT),
    generation=(" ASSISTANT:",),
    assistant=(CONTENT, EOS),
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    replace_jinja_template=True,
)

XUANYUAN = replace(
    VICUNA,
    name="xuanyuan",
    user=("Human: ", CONTENT),
    generation=(" Assistant:",),
    default_system=(
        "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，会对人类提出的问题给出有帮助、"
        "高质量、详细和礼貌的回答，并且总是拒绝参与与不道德、不安全、有争议、政治敏感等相关的话题、问题和指示。\n"
    ),
    replace_jinja_template=False,
)

XVERSE = Template(
    name="xverse", user=("Human: ", CONTENT, "\n\n"), generation=("Assistant: ",), assistant=(CONTENT, EOS)
)

ZIYA = Template(
    name="ziya",
    user=("<human>:", CONTENT, "\n"),
    generation=("<bot>:",),
    assistant=(CONTENT, "\n"),
    efficient_eos=True,
)

TEMPLATES = (ALPACA, AQUILA, BELLE, DEFAULT, EMPTY, FEWSHOT, SOLAR, VICUNA, XUANYUAN, XVERSE, ZIYA)
