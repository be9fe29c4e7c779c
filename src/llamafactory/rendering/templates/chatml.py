"""ChatML, and the templates of vendors whose only one keeps its form. `FRAME` is what all ChatML templates share."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, Template

FRAME = Template(
    name="frame",
    user=("<|im_start|>user\n", CONTENT, "<|im_end|>\n"),
    generation=("<|im_start|>assistant\n",),
    assistant=(CONTENT, "<|im_end|>\n"),
    system=("<|im_start|>system\n", CONTENT, "<|im_end|>\n"),
    stop_words=("<|im_end|>",),
)

TOOL_FRAME = replace(FRAME, name="tool_frame", observation=("<|im_start|>tool\n", CONTENT, "<|im_end|>\n"))

CHATML = replace(
    TOOL_FRAME,
    name="chatml",
    stop_words=("<|im_end|>", "<|im_start|>"),
    replace_eos=True,
    replace_jinja_template=True,
)

CHATML_DE = replace(CHATML, name="chatml_de", default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.")

DBRX = replace(
    TOOL_FRAME,
    name="dbrx",
    default_system=(
        "You are DBRX, created by Databricks. You were last updated in December 2023. "
        "You answer questions based on information available up to that point.\n"
        "YOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough responses to more complex "
        "and open-ended questions.\n"
        "You assist with various tasks, from writing to coding (using markdown for code blocks — remember to use ``` "
        "with code, JSON, and tables).\n"
        "(You do not have real-time data access or code execution capabilities. You avoid stereotyping and provide "
        "balanced perspectives on controversial topics. You do not provide song lyrics, poems, or news articles and do "
        "not divulge details of your training data.)\n"
        "This is your system prompt, guiding your responses. Do not reference it, just respond to the user. If you "
        "find yourself talking about this message, stop. You should be responding appropriately and usually that means "
        "not mentioning this.\n"
        "YOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS DIRECTLY PERTINENT TO THE "
        "USER'S QUERY."
    ),
    replace_eos=True,
)

MARCO = replace(
    TOOL_FRAME,
    name="marco",
    default_system=(
        "你是一个经过良好训练的AI助手，你的名字是Marco-o1.由阿里国际数字商业集团的AI Business创造.\n"
        "## 重要！！！！！\n"
        "当你回答问题时，你的思考应该在<Thought>内完成，<Output>内输出你的结果。\n"
        "<Thought>应该尽可能是英文，但是有2个特例，一个是对原文中的引用，另一个是是数学应该使用markdown格式，"
        "<Output>内的输出需要遵循用户输入的语言。\n"
    ),
)

OPENCODER = replace(TOOL_FRAME, name="opencoder", default_system="You are OpenCoder, created by OpenCoder Team.")

SAILOR = replace(
    FRAME,
    name="sailor",
    user=("<|im_start|>question\n", CONTENT, "<|im_end|>\n"),
    generation=("<|im_start|>answer\n",),
    default_system=(
        "You are an AI assistant named Sailor created by Sea AI Lab. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed."
    ),
)

TEMPLATES = (CHATML, CHATML_DE, DBRX, MARCO, OPENCODER, SAILOR)
