"""Templates of the Phi models."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, Template

PHI4 = Template(
    name="phi4",
    user=("<|im_start|>user<|im_sep|>", CONTENT, "<|im_end|>"),
    generation=("<|im_start|>assistant<|im_sep|>",),
    assistant=(CONTENT, "<|im_end|>"),
    system=("<|im_start|>system<|im_sep|>", CONTENT, "<|im_end|>"),
    stop_words=("<|im_end|>",),
    replace_eos=True,
)

TEMPLATES = (PHI4,)
