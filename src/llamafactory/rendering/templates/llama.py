"""Templates of the Llama models."""

from __future__ import annotations

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

LLAMA2 = Template(
    name="llama2",
    user=(BOS, "[INST] ", CONTENT, " [/INST]"),
    assistant=(CONTENT, EOS),
    system=("<<SYS>>\n", CONTENT, "\n<</SYS>>\n\n"),
    system_style="merged",
)

LLAMA3 = Template(
    name="llama3",
    user=("<|start_header_id|>user<|end_header_id|>\n\n", CONTENT, "<|eot_id|>"),
    generation=("<|start_header_id|>assistant<|end_header_id|>\n\n",),
    assistant=(CONTENT, "<|eot_id|>"),
    system=("<|start_header_id|>system<|end_header_id|>\n\n", CONTENT, "<|eot_id|>"),
    observation=("<|start_header_id|>ipython<|end_header_id|>\n\n", CONTENT, "<|eot_id|>"),
    prefix=(BOS,),
    stop_words=("<|eot_id|>", "<|eom_id|>"),
    tool_format="llama3",
    text_end="<|end_of_text|>",
    replace_eos=True,
)

TEMPLATES = (LLAMA2, LLAMA3)
