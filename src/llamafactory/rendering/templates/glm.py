"""Templates of the GLM, ChatGLM and CodeGeeX models, and of models built on them."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import CONTENT, EOS, TURN, MediaTokens, Template, Token

CODEGEEX2 = Template(
    name="codegeex2",
    user=(CONTENT,),
    assistant=(CONTENT, EOS),
    prefix=(Token("[gMASK]"), Token("sop")),
)

CHATGLM2 = replace(
    CODEGEEX2,
    name="chatglm2",
    user=("[Round ", TURN, "]\n\n问：", CONTENT, "\n\n"),
    generation=("答：",),
    assistant=(CONTENT,),
    efficient_eos=True,
)

GLM4 = Template(
    name="glm4",
    user=("<|user|>\n", CONTENT),
    generation=("<|assistant|>",),
    assistant=("\n", CONTENT),
    system=("<|system|>\n", CONTENT),
    observation=("<|observation|>\n", CONTENT),
    function=(CONTENT,),
    prefix=("[gMASK]<sop>",),
    stop_words=("<|user|>", "<|observation|>"),
    tool_format="glm4",
    efficient_eos=True,
)

CHATGLM3 = replace(
    GLM4,
    name="chatglm3",
    user=(Token("<|user|>"), "\n", CONTENT),
    generation=(Token("<|assistant|>"),),
    system=(Token("<|system|>"), "\n", CONTENT),
    observation=(Token("<|observation|>"), "\n", CONTENT),
    prefix=CODEGEEX2.prefix,
)

CODEGEEX4 = replace(
    GLM4,
    name="codegeex4",
    generation=("<|assistant|>\n",),
    assistant=(CONTENT,),
    default_system=(
        "你是一位智能编程助手，你叫CodeGeeX。你会为用户回答关于编程、代码、计算机方面的任何问题，"
        "并提供格式规范、可以执行、准确安全的代码，并在必要时提供详细的解释。"
    ),
)

GLMZ1 = replace(GLM4, name="glmz1", reasoning=True)
GLM4_MOE = replace(GLMZ1, name="glm4_moe", tool_format="glm4_moe")

GLM_OCR = replace(
    GLM4,
    name="glm_ocr",
    media=MediaTokens(
        "glm4v", image="<|image|>", video="<|video|>", vision_ends=("<|vision_start|>", "<|vision_end|>")
    ),
)
GLM4V = replace(GLMZ1, name="glm4v", stop_words=(*GLM4.stop_words, "</answer>"), media=GLM_OCR.media)
GLM4_5V = replace(GLM4V, name="glm4_5v", tool_format="glm4_moe")

GLM4_7 = replace(GLM4_MOE, name="glm4_7", thought_words=("<think>", "</think>"), empty_thought="</think>")

AEVA = replace(
    GLM4_7,
    name="aeva",
    default_system=(
        "You are an AI assistant named Aeva created by Zongzhi Lou. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed."
    ),
)

TEMPLATES = (
    CODEGEEX2, CHATGLM2, GLM4, CHATGLM3, CODEGEEX4, GLMZ1, GLM4_MOE, GLM_OCR, GLM4V, GLM4_5V, GLM4_7, AEVA,
)  # fmt: skip
