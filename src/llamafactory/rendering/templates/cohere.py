"""Templates of the Cohere models."""

from __future__ import annotations

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

COHERE = Template(
    name="cohere",
    user=("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", CONTENT, "<|END_OF_TURN_TOKEN|>"),
    generation=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",),
    assistant=(CONTENT, EOS),
    system=("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", CONTENT, "<|END_OF_TURN_TOKEN|>"),
    prefix=(BOS,),
)

TEMPLATES = (COHERE,)
