"""Stops a run whose loss is no longer a number, before it overwrites anything.

Knows numbers and how a run describes itself; knows no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamafactory.errors import LlamaFactoryError
from llamafactory.logs import get_logger

logger = get_logger(__name__)

MAX_NON_FINITE_STEPS = 3


class DivergedError(LlamaFactoryError):
    """The loss or the gradients stayed non-finite."""


@dataclass
class NonFiniteGuard:
    """Counts successive steps with a NaN or infinite loss or gradient norm.

    description: dtype, precision and device of the run, for the message.
    """

    description: str
    limit: int = MAX_NON_FINITE_STEPS
    count: int = 0

    def observe(self, *, finite: bool, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Take note of one step. Raises DivergedError at the limit."""
        if finite:
            self.count = 0
            return
        self.count += 1
        facts = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}, learning rate {learning_rate:.3g}"
        if self.count < self.limit:
            logger.warning("Step %d: %s; this update is skipped and no checkpoint is written", step, facts)
            return
        raise DivergedError(
            f"training stopped at step {step}: the loss or gradient was not finite {self.count} times in a row "
            f"({facts}; {self.description}); earlier checkpoints are intact; lower learning_rate, set bf16: true "
            "instead of fp16, or look for broken examples"
        )
