"""Templates of the Llama models, and of models built on them."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, MediaTokens, Template

LLAMA2 = Template(
    name="llama2",
    user=(BOS, "[INST] ", CONTENT, " [/INST]"),
    assistant=(CONTENT, EOS),
    system=("<<SYS>>\n", CONTENT, "\n<</SYS>>\n\n"),
    system_style="merged",
)

LLAMA2_ZH = replace(LLAMA2, name="llama2_zh", default_system="You are a helpful assistant. 你是一个乐于助人的助手。")

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

LLAMA4 = Template(
    name="llama4",
    user=("<|header_start|>user<|header_end|>\n\n", CONTENT, "<|eot|>"),
    generation=("<|header_start|>assistant<|header_end|>\n\n",),
    assistant=(CONTENT, "<|eot|>"),
    system=("<|header_start|>system<|header_end|>\n\n", CONTENT, "<|eot|>"),
    observation=("<|header_start|>ipython<|header_end|>\n\n", CONTENT, "<|eot|>"),
    prefix=(BOS,),
    stop_words=("<|eot|>", "<|eom|>"),
    tool_format="llama3",
    replace_eos=True,
    media=MediaTokens("llama4", image="<|image|>"),
)

MLLAMA = replace(LLAMA3, name="mllama", text_end="", media=MediaTokens("mllama", image="<|image|>"))

SKYWORK_O1 = replace(
    LLAMA3,
    name="skywork_o1",
    default_system=(
        "You are Skywork-o1, a thinking model developed by Skywork AI, specializing in solving complex problems "
        "involving mathematics, coding, and logical reasoning through deep thought. When faced with a user's request, "
        "you first engage in a lengthy and in-depth thinking process to explore possible solutions to the problem. "
        "After completing your thoughts, you then provide a detailed explanation of the solution process in your "
        "response."
    ),
    text_end="",
    replace_eos=False,
)

TEMPLATES = (LLAMA2, LLAMA2_ZH, LLAMA3, LLAMA4, MLLAMA, SKYWORK_O1)
