"""Exact match: 100 when the two texts are the same but for blanks at their ends, else 0."""

from __future__ import annotations

PACKAGES = ()
NAMES = ("exact_match",)


def score(answer: str, reference: str) -> dict[str, float]:
    """`exact_match` of one pair, 0 or 100."""
    return {"exact_match": 100.0 * (answer.strip() == reference.strip())}
