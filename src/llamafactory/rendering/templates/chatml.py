"""ChatML and the templates that keep its form."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, Template

CHATML = Template(
    name="chatml",
    user=("<|im_start|>user\n", CONTENT, "<|im_end|>\n"),
    generation=("<|im_start|>assistant\n",),
    assistant=(CONTENT, "<|im_end|>\n"),
    system=("<|im_start|>system\n", CONTENT, "<|im_end|>\n"),
    observation=("<|im_start|>tool\n", CONTENT, "<|im_end|>\n"),
    stop_words=("<|im_end|>", "<|im_start|>"),
    replace_eos=True,
    replace_jinja_template=True,
)

TEMPLATES = (CHATML,)
