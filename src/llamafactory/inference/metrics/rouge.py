"""ROUGE-1, -2 and -L of one answer, over words that jieba cuts, so Chinese text has words too.

Lin 2004 (https://aclanthology.org/W04-1013): F1 of the shared unigrams, bigrams (each kind counts once) and of the
longest common subsequence. The numbers are those of the package rouge-chinese, whose time grows with the square of an
answer's length; ours hardly does.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

PACKAGES = ("jieba",)
NAMES = ("rouge-1", "rouge-2", "rouge-l")
_SENTENCE_END = re.compile(r"(?:[。！？?]|\.{6}|…{2})(?![”’])|[。！？?][”’](?![，。！？?])")
_TINY = 1e-8


def score(answer: str, reference: str) -> dict[str, float]:
    """`rouge-1`, `rouge-2` and `rouge-l` of one pair, 0 to 100; 0 when either text holds no word."""
    mine, wanted = words(answer), words(reference)
    if not any(mine) or not any(wanted):
        return dict.fromkeys(NAMES, 0.0)
    found = {f"rouge-{n}": _overlap(_ngrams(mine, n), _ngrams(wanted, n)) for n in (1, 2)}
    shared = lcs_length(mine, wanted)
    found["rouge-l"] = _f1(shared / len(mine), shared / len(wanted))
    return {name: 100.0 * value for name, value in found.items()}


def words(text: str) -> list[str]:
    """The words of a text; a line or sentence of blanks counts as one empty word."""
    marked = " ".join(_cutter().cut(text))
    sentences = _SENTENCE_END.sub(lambda match: f"{match[0]}\n", marked).rstrip().split("\n")
    return [word for sentence in sentences if sentence for word in " ".join(sentence.split()).split(" ")]


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one bit of an integer for each word of `first`.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    free = every
    for word in second:
        hit = free & places.get(word, 0)
        free = ((free + hit) | (free - hit)) & every
    return len(first) - free.bit_count()


def _ngrams(found: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(found[place : place + n]) for place in range(len(found) - n + 1)}


def _overlap(mine: set[tuple[str, ...]], wanted: set[tuple[str, ...]]) -> float:
    shared = len(mine & wanted)
    return _f1(shared / len(mine) if mine else 0.0, shared / len(wanted) if wanted else 0.0)


def _f1(precision: float, recall: float) -> float:
    return 2.0 * precision * recall / (precision + recall + _TINY)


@functools.cache
def _cutter() -> Any:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba
