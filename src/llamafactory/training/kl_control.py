"""How strongly a policy is held to its reference: a coefficient that stays, or one that follows a target.

Knows numbers, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

HORIZON = 10_000
"""Sampled answers over which the coefficient can change by a factor of about e^0.2."""
MAX_ERROR = 0.2


@dataclass
class KlControl:
    """The coefficient beta of the divergence penalty.

    coef: beta. target: wished mean divergence of an answer, in nats, or None to leave beta as it is.

    Section 2.2 of https://arxiv.org/abs/1909.08593: e = clip(KL/target - 1, -0.2, 0.2), beta <- beta * (1 + K*e), with
    K = number of answers / horizon.
    """

    coef: float
    target: float | None = None

    def update(self, mean_kl: float, num_answers: int) -> None:
        """Take note of one round of answers; changes `coef` for the next."""
        if self.target is None:
            return
        error = min(max(mean_kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.coef *= 1 + error * num_answers / HORIZON
