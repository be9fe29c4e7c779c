"""BLEU-4 of one answer, over characters, so Chinese and English are read alike.

Papineni et al. 2002 (https://aclanthology.org/P02-1040): the geometric mean of the precisions of 1- to 4-grams times
the brevity penalty. Precisions of zero are smoothed by method 3 of Chen and Cherry 2014
(https://aclanthology.org/W14-3346): the k-th zero precision becomes 1 / (2^k * number of n-grams).
"""

from __future__ import annotations

PACKAGES = ("nltk",)
NAMES = ("bleu-4",)


def score(answer: str, reference: str) -> dict[str, float]:
    """`bleu-4` of one pair, 0 to 100; 0 when either text is empty."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not answer or not reference:
        return {"bleu-4": 0.0}
    smoothing = SmoothingFunction().method3
    return {"bleu-4": 100.0 * sentence_bleu([list(reference)], list(answer), smoothing_function=smoothing)}
