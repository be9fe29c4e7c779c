"""Finding the name a user meant. Knows no key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name with the fewest edits (at most one in three letters), else a similar one, else None."""
    candidates = sorted(set(known))
    limit = max(1, min(3, len(name) // 3))
    scored = [(edits(name, item, limit=limit), item) for item in candidates if abs(len(item) - len(name)) <= limit]
    close = [(count, -_ratio(name, item), item) for count, item in scored if count <= limit]
    if close:
        return min(close)[2]
    similar = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    if similar:
        return similar[0]
    ordered = {_in_order(item): item for item in candidates}
    same_words = difflib.get_close_matches(_in_order(name), ordered, n=1, cutoff=0.9)
    return ordered[same_words[0]] if same_words else None


def _in_order(name: str) -> str:
    """The words of a name, sorted: `batch_train` and `train_batch` are alike."""
    return "_".join(sorted(name.split("_")))


def edits(left: str, right: str, *, limit: int) -> int:
    """Count insertions, deletions, replacements and swaps of neighbours between two names; stops above `limit`."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()
