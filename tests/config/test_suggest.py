"""The nearest key is found after one slip of the finger."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

from llamafactory.config.catalog import options
from llamafactory.config.suggest import edits, nearest

REFERENCE = json.loads((Path(__file__).parent / "reference_keys.json").read_text(encoding="utf-8"))
CENTRAL = [key for key, entry in REFERENCE.items() if entry["central"] and key in options()]


def mutations(key: str, source: random.Random) -> set[str]:
    """A few words one edit away: a letter more, less, another, or two swapped."""
    found = set()
    for _ in range(2):
        i = source.randrange(len(key))
        letter = source.choice(string.ascii_lowercase + "_")
        found |= {key[:i] + letter + key[i:], key[:i] + key[i + 1 :], key[:i] + letter + key[i + 1 :]}
        found.add(key[:i] + key[i : i + 2][::-1] + key[i + 2 :])
    return found - set(options())


def test_one_edit_leads_back_to_the_key() -> None:
    source = random.Random(7)
    cases = [(key, word) for key in CENTRAL for word in mutations(key, source)]
    wrong = [(key, word) for key, word in cases if nearest(word, options()) != key]
    assert len(CENTRAL) > 80 and len(cases) > 500
    assert len(wrong) <= 0.05 * len(cases), wrong


def test_edits_count_swaps_once() -> None:
    assert edits("rnak", "rank", limit=3) == 1
    assert edits("rank", "rank", limit=3) == 0
    assert edits("abc", "xyz", limit=1) > 1


def test_nothing_near_is_nothing() -> None:
    assert nearest("qqqqqqqq", options()) is None


def test_words_in_another_order_are_found() -> None:
    assert nearest("train_batch_size_per_device", options()) == "per_device_train_batch_size"
