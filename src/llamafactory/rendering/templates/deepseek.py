"""Templates of the DeepSeek models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

DEEPSEEK = Template(
    name="deepseek",
    user=("User: ", CONTENT, "\n\n"),
    generation=("Assistant:",),
    assistant=(CONTENT, EOS),
    system=(CONTENT, "\n\n"),
    prefix=(BOS,),
)

DEEPSEEK3 = Template(
    name="deepseek3",
    user=("<｜User｜>", CONTENT),
    generation=("<｜Assistant｜>",),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
)

DEEPSEEKR1 = replace(DEEPSEEK3, name="deepseekr1", reasoning=True)

DEEPSEEKCODER = Template(
    name="deepseekcoder",
    user=("### Instruction:\n", CONTENT, "\n"),
    generation=("### Response:",),
    assistant=("\n", CONTENT, "\n<|EOT|>\n"),
    prefix=(BOS,),
    default_system=(
        "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeek Company, and "
        "you only answer questions related to computer science. For politically sensitive questions, security and "
        "privacy issues, and other non-computer science questions, you will refuse to answer.\n"
    ),
)

TEMPLATES = (DEEPSEEK, DEEPSEEK3, DEEPSEEKR1, DEEPSEEKCODER)
