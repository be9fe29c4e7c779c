"""Templates of the MiniMax models."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, Template

MINIMAX1 = Template(
    name="minimax1",
    user=("<beginning_of_sentence>user name=user\n", CONTENT, "<end_of_sentence>\n"),
    generation=("<beginning_of_sentence>ai name=assistant\n",),
    assistant=(CONTENT, "<end_of_sentence>\n"),
    system=("<beginning_of_sentence>system ai_setting=assistant\n", CONTENT, "<end_of_sentence>\n"),
    observation=("<beginning_of_sentence>tool name=tools\n", CONTENT, "<end_of_sentence>\n"),
    default_system="You are a helpful assistant.",
    stop_words=("<end_of_sentence>",),
    tool_format="minimax1",
)

MINIMAX2 = Template(
    name="minimax2",
    user=("]~b]user\n", CONTENT, "[e~[\n"),
    generation=("]~b]ai\n",),
    assistant=(CONTENT, "[e~[\n"),
    system=("]~!b[]~b]system\n", CONTENT, "[e~[\n"),
    observation=("]~b]tool\n<response>", CONTENT, "</response>[e~[\n"),
    default_system="You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax.",
    stop_words=("[e~[",),
    tool_format="minimax2",
    reasoning=True,
)

TEMPLATES = (MINIMAX1, MINIMAX2)
