"""Formats of plain text: no control tokens but the tokenizer's end token."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, EOS, Template

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

DEFAULT = Template(
    name="default",
    user=("Human: ", CONTENT, EOS, "\n"),
    generation=("Assistant:",),
    assistant=(CONTENT, EOS, "\n"),
    system=("System: ", CONTENT, EOS, "\n"),
    replace_jinja_template=True,
)

EMPTY = Template(name="empty", user=(CONTENT,), assistant=(CONTENT,), efficient_eos=True)

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

TEMPLATES = (ALPACA, DEFAULT, EMPTY, VICUNA)
