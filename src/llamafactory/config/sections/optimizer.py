"""Optimizers that are one switch. Knows no model."""

from typing import ClassVar

from llamafactory.config.section import Section, option


class OptimizerConfig(Section):
    """Adam-mini and Muon; optimizers that transformers offers are chosen with optim."""

    title: ClassVar[str] = "Other optimizers"

    use_adam_mini: bool = option(False, "Use the Adam-mini optimizer.")
    use_muon: bool = option(False, "Use the Muon optimizer for matrices and AdamW for the rest.")
