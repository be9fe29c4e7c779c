"""Metrics against numbers worked out by hand, and ROUGE against the package it agrees with."""

from __future__ import annotations

import math
import random

import pytest

from llamafactory.errors import MissingPackageError
from llamafactory.inference import metrics
from llamafactory.inference.metrics import bleu, exact_match, require_packages, rouge, score_all


def test_rouge_of_english_words() -> None:
    # Words: the cat sat | the cat ran on. Shared: 2 of 3 and of 4 unigrams, 1 of 2 and of 3 bigrams; LCS "the cat".
    found = rouge.score("the cat sat", "the cat ran on")
    unigrams = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    bigrams = 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)
    assert found["rouge-1"] == pytest.approx(100 * unigrams, abs=1e-4)
    assert found["rouge-2"] == pytest.approx(100 * bigrams, abs=1e-4)
    assert found["rouge-l"] == pytest.approx(100 * unigrams, abs=1e-4)


def test_rouge_cuts_chinese_into_words() -> None:
    # 我 来到 北京 | 我 离开 北京: 2 of 3 words shared, no two in a row, in the same order.
    assert rouge.words("我来到北京") == ["我", "来到", "北京"]
    found = rouge.score("我来到北京", "我离开北京")
    assert found == pytest.approx({"rouge-1": 100 * 2 / 3, "rouge-2": 0, "rouge-l": 100 * 2 / 3}, abs=1e-4)


def test_rouge_l_keeps_the_order_and_rouge_1_counts_each_word_once() -> None:
    found = rouge.score("b a a a", "a b")
    assert found["rouge-1"] == pytest.approx(100, abs=1e-4)
    assert found["rouge-l"] == pytest.approx(100 * 2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2), abs=1e-4)
    assert rouge.lcs_length("abcbdab", "bdcaba") == 4


@pytest.mark.parametrize(("answer", "reference"), [("", "a"), ("a", ""), (" ", "a"), ("a", "\n\n")])
def test_nothing_is_like_nothing(answer: str, reference: str) -> None:
    assert set(rouge.score(answer, reference).values()) == {0.0}


def test_bleu_of_characters() -> None:
    # abcde | abcdf: 4/5 of the characters, 3/4 of the pairs, 2/3 of the triples, 1/2 of the fours; same length.
    expected = math.exp(sum(map(math.log, (4 / 5, 3 / 4, 2 / 3, 1 / 2))) / 4)
    assert bleu.score("abcde", "abcdf")["bleu-4"] == pytest.approx(100 * expected)
    # ab | abcd: precisions 1, 1, then zeros, smoothed to 1/2 and 1/4; brevity exp(1 - 4/2).
    assert bleu.score("ab", "abcd")["bleu-4"] == pytest.approx(100 * (1 / 8) ** (1 / 4) * math.exp(-1))
    assert bleu.score("你好，世界", "你好，世界")["bleu-4"] == pytest.approx(100)
    assert bleu.score("", "a") == bleu.score("a", "") == {"bleu-4": 0.0}


def test_exact_match_ignores_blanks_at_the_ends() -> None:
    assert exact_match.score(" yes\n", "yes") == {"exact_match": 100.0}
    assert exact_match.score("yes.", "yes") == {"exact_match": 0.0}


def test_rounded_for_each_pair_and_averaged() -> None:
    found = score_all([("the cat sat", "the cat sat"), ("no", "yes")])
    assert found == pytest.approx(
        {"rouge-1": 50, "rouge-2": 50, "rouge-l": 50, "bleu-4": 50, "exact_match": 50}, abs=1e-4
    )
    assert found["rouge-1"] == round(100 * 2 / (2 + 1e-8), 4) / 2
    assert score_all([]) == {}


def test_the_numbers_are_those_of_rouge_chinese() -> None:
    library = pytest.importorskip("rouge_chinese").Rouge()
    import jieba

    rng = random.Random(0)
    texts = [
        "你好，世界。再见！",
        "I came. I saw? I won... “yes!” he said.\n\nA new line",
        "。",
        "……好。”他说",
        "a b a c",
    ]
    texts += [
        "".join(rng.choice("你好世界见。！？ .abc\n，“”…?") for _ in range(rng.randint(1, 30))) for _ in range(60)
    ]
    for _ in range(150):
        answer, reference = rng.choice(texts), rng.choice(texts)
        first, second = " ".join(jieba.cut(answer)), " ".join(jieba.cut(reference))
        if first.split() and second.split():
            expected = {name: 100 * value["f"] for name, value in library.get_scores(first, second)[0].items()}
            assert rouge.score(answer, reference) == pytest.approx(expected, abs=1e-6), (answer, reference)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages("predict")
    monkeypatch.setattr(metrics.METRICS.load("bleu"), "PACKAGES", ("no_such_package",))
    with pytest.raises(
        MissingPackageError, match=r"predict needs the package 'no_such_package'.*llamafactory\[metrics"
    ):
        require_packages("predict")
