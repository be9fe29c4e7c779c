"""Adaptive ranks. Knows no model."""

from typing import Annotated, ClassVar

from pydantic import Field

from llamafactory.config.section import Positive, Section, option

Share = Annotated[float, Field(ge=0, lt=1)]


class AdaloraConfig(Section):
    """AdaLoRA: how the ranks shrink to lora_rank on average; targets, scale and dropout are those of LoRA."""

    title: ClassVar[str] = "AdaLoRA method"

    adalora_init_rank: Positive | None = option(None, "Rank of every matrix at first; left out, 1.5 times lora_rank.")
    adalora_warmup_ratio: Share = option(0.1, "Share of the updates before ranks start to shrink.")
    adalora_final_ratio: Share = option(0.3, "Share of the updates at the end in which ranks stay as they are.")
