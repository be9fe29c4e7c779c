"""Pre-training: next-token cross-entropy over plain text."""

from __future__ import annotations

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Objective
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.rendering.records import Text

RECORD = Text


def build(config: RunConfig) -> Objective:
    """The objective of `stage: pt`."""
    return CrossEntropy(
        label_smoothing=config.training.label_smoothing_factor, accuracy=config.finetuning.compute_accuracy
    )
