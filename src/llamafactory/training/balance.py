"""How many answers are marked good and how many bad, and whether their weights make up for it. Knows no loss."""

from __future__ import annotations

from collections.abc import Sequence

MOST_EVEN = (1.0, 4 / 3)
"""Good times their weight over bad times theirs, as https://arxiv.org/abs/2402.01306 advises (section 4.2)."""


def balance_line(desirable: Sequence[bool], good_weight: float, bad_weight: float) -> str:
    """One sentence for the log: the numbers, and the weight that would even them out where they are uneven."""
    good = sum(desirable)
    bad = len(desirable) - good
    counted = f"kto: {good} answers are marked good and {bad} bad"
    if not good or not bad:
        missing = "good" if bad else "bad"
        return f"{counted}; without any {missing} ones nothing shows what to prefer, so add some to the data set"
    if not good_weight or not bad_weight:
        return f"{counted}; the weight of one of the two is 0, so it teaches nothing"
    ratio = good_weight * good / (bad_weight * bad)
    if MOST_EVEN[0] <= round(ratio, 2) <= round(MOST_EVEN[1], 2):
        return f"{counted}, with their weights {ratio:.2f} to 1"
    key = "kto_rejected_weight" if ratio > 1 else "kto_chosen_weight"
    weight = good_weight * good / bad if ratio > 1 else bad_weight * bad / good
    return f"{counted}, with their weights {ratio:.2f} to 1; {key}: {weight:.2f} would make them even"
