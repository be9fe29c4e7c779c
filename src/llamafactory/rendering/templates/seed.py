"""Templates of the Seed models."""

from __future__ import annotations

from dataclasses import replace

from llamafactory.rendering.template import BOS, CONTENT, EOS, Template

SEED_CODER = Template(
    name="seed_coder",
    user=(BOS, "user\n", CONTENT, EOS),
    generation=(BOS, "assistant\n"),
    assistant=(CONTENT, EOS),
    system=(BOS, "system\n", CONTENT, EOS),
    default_system=(
        "You are an AI programming assistant, utilizing the Seed-Coder model, developed by ByteDance Seed, and you "
        "only answer questions related to computer science. For politically sensitive questions, security and privacy "
        "issues, and other non-computer science questions, you will refuse to answer.\n\n"
    ),
)

SEED_OSS = replace(
    SEED_CODER,
    name="seed_oss",
    function=(BOS, "\n", CONTENT, EOS),
    default_system="",
    thought_words=("<seed:think>", "</seed:think>"),
    tool_format="seed_oss",
    reasoning=True,
)

TEMPLATES = (SEED_CODER, SEED_OSS)
