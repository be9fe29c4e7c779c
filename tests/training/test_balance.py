"""The sentence about good and bad answers."""

from __future__ import annotations

import re

import pytest

from llamafactory.training.balance import balance_line


@pytest.mark.parametrize(
    ("good", "bad", "weights", "expected"),
    [
        (4, 4, (1.0, 1.0), "kto: 4 answers are marked good and 4 bad, with their weights 1.00 to 1"),
        (8, 2, (1.0, 1.0), "8 answers are marked good and 2 bad.*4.00 to 1; kto_rejected_weight: 4.00 would make"),
        (2, 8, (1.0, 1.0), "0.25 to 1; kto_chosen_weight: 4.00 would make them even"),
        (8, 2, (1.0, 3.0), "with their weights 1.33 to 1$"),
        (3, 0, (1.0, 1.0), "3 answers are marked good and 0 bad; without any bad ones nothing shows what to prefer"),
        (0, 3, (1.0, 1.0), "without any good ones"),
        (3, 3, (0.0, 1.0), "the weight of one of the two is 0, so it teaches nothing"),
    ],
)
def test_balance(good: int, bad: int, weights: tuple[float, float], expected: str) -> None:
    line = balance_line([True] * good + [False] * bad, *weights)
    assert re.search(expected, line), line
