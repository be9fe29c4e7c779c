"""Templates of vendors that have a single one, in a form of their own."""

from __future__ import annotations

from llamafactory.rendering.template import BOS, CONTENT, EOS, MediaTokens, Template, Token

ATOM = Template(
    name="atom",
    user=(BOS, "Human: ", CONTENT, "\n", EOS),
    generation=(BOS, "Assistant:"),
    assistant=(CONTENT, "\n", EOS),
)

BLUELM = Template(
    name="bluelm",
    user=(Token("[|Human|]:"), CONTENT),
    generation=(Token("[|AI|]:"),),
    assistant=(CONTENT, EOS),
)

DOTS_OCR = Template(
    name="dots_ocr",
    user=("<|user|>", CONTENT, "<|endofuser|>"),
    generation=("<|assistant|>",),
    assistant=(CONTENT, "<|endofassistant|>"),
    system=("<|system|>", CONTENT, "<|endofsystem|>\n"),
    stop_words=("<|endofassistant|>",),
    efficient_eos=True,
    media=MediaTokens("qwen2_vl", image="<|imgpad|>", video="<|vidpad|>", vision_ends=("<|img|>", "<|endofimg|>")),
)

EXAONE = Template(
    name="exaone",
    user=("[|user|]", CONTENT, "\n"),
    generation=("[|assistant|]",),
    assistant=(CONTENT, EOS, "\n"),
    system=("[|system|]", CONTENT, "[|endofturn|]\n"),
)

INDEX = Template(
    name="index",
    user=("reserved_0", CONTENT),
    generation=("reserved_1",),
    assistant=(CONTENT,),
    system=("<unk>", CONTENT),
    efficient_eos=True,
)

OLMO = Template(
    name="olmo",
    user=("<|user|>\n", CONTENT),
    generation=("<|assistant|>\n",),
    assistant=(CONTENT, EOS),
    prefix=(EOS,),
)

ORION = Template(
    name="orion",
    user=("Human: ", CONTENT, "\n\n"),
    generation=("Assistant: ", EOS),
    assistant=(CONTENT, EOS),
    prefix=(BOS,),
)

YAYI = Template(
    name="yayi",
    user=(Token("<|Human|>"), ":\n", CONTENT, "\n\n"),
    generation=(Token("<|YaYi|>"), ":"),
    assistant=(CONTENT, "\n\n"),
    system=(Token("<|System|>"), ":\n", CONTENT, "\n\n"),
    default_system=(
        "You are a helpful, respectful and honest assistant named YaYi developed by Beijing Wenge Technology Co.,Ltd. "
        "Always answer as helpfully as possible, while being safe.  Your answers should not include any harmful, "
        "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are "
        "socially unbiased and positive in nature.\n\n"
        "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
        "something not correct. If you don't know the answer to a question, please don't share false information."
    ),
    stop_words=("<|End|>",),
    efficient_eos=True,
)

YUAN = Template(name="yuan", user=(CONTENT, Token("<sep>")), assistant=(CONTENT, "<eod>\n"), stop_words=("<eod>",))

TEMPLATES = (ATOM, BLUELM, DOTS_OCR, EXAONE, INDEX, OLMO, ORION, YAYI, YUAN)
