"""How near answers are to references: one file per family of measures.

Each file defines `PACKAGES` (import names it needs), `NAMES`, and `score(answer, reference) -> {name: 0..100}` for one
pair of texts. All are shares in percent, higher is better. Knows texts, no model and no data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from llamafactory.parts import Family, require

METRICS = Family("metric", "llamafactory.inference.metrics", ("PACKAGES", "NAMES", "score"))


def require_packages(needed_by: str) -> None:
    """Raise MissingPackageError for a package that a metric needs and that is not installed."""
    for name in METRICS.names():
        for package in METRICS.load(name).PACKAGES:
            require(package, needed_by, extra="metrics")


def score_all(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean of every measure over (answer, reference) pairs; each is rounded to 4 decimals per pair, then averaged.

    Empty for no pairs.
    """
    sums: dict[str, float] = {}
    for answer, reference in pairs:
        for name, value in _scores(answer, reference).items():
            sums[name] = sums.get(name, 0.0) + round(value, 4)
    return {name: value / len(pairs) for name, value in sums.items()}


@lru_cache(maxsize=1024)
def _scores(answer: str, reference: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in METRICS.names():
        found |= METRICS.load(name).score(answer, reference)
    return found
