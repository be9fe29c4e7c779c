"""Templates of the GLM models."""

from __future__ import annotations

from llamafactory.rendering.template import CONTENT, Template

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

TEMPLATES = (GLM4,)
