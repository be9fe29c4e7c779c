"""The choice of a token against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llamafactory.errors import ModelError
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.sampling import Answer, Token, choose, draw, new_generator, penalise, report

GREEDY = GenerationOptions(do_sample=False)


def make_answer(options: GenerationOptions = GREEDY, *, prompt: list[int] | None = None, limit: int = 9) -> Answer:
    return Answer(prompt or [0], options, frozenset({7}), limit, None, new_generator(options))


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_scores_of_prompt_and_answer() -> None:
    answer = make_answer(GenerationOptions(do_sample=False, repetition_penalty=2.0), prompt=[0, 0, 1])
    answer.tokens = [3]
    scores = torch.tensor([4.0, -4.0, 4.0, 1.0])
    penalise(scores, answer)
    assert scores.tolist() == [2.0, -8.0, 4.0, 0.5]


def test_presence_counts_once_and_frequency_every_time_and_the_prompt_never() -> None:
    answer = make_answer(
        GenerationOptions(do_sample=False, presence_penalty=0.5, frequency_penalty=0.25), prompt=[2, 2, 2]
    )
    answer.tokens = [0, 1, 0, 0]
    scores = torch.tensor([1.0, 1.0, 1.0])
    penalise(scores, answer)
    assert scores.tolist() == [1 - 0.5 - 0.75, 1 - 0.5 - 0.25, 1.0]


PROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3]])  # sorted: 1 (0.4), 3 (0.3), 2 (0.2), 0 (0.1)


@pytest.mark.parametrize(
    ("uniform", "top_k", "top_p", "token"),
    [
        (0.0, 0, 1.0, 1),
        (0.39, 0, 1.0, 1),
        (0.41, 0, 1.0, 3),
        (0.71, 0, 1.0, 2),
        (0.91, 0, 1.0, 0),
        (0.999999, 0, 1.0, 0),
        (0.56, 2, 1.0, 1),  # two are left: 4/7 and 3/7
        (0.58, 2, 1.0, 3),
        (0.999999, 1, 1.0, 1),
        (0.999999, 0, 0.4, 1),  # the first alone reaches 0.4
        (0.999999, 0, 0.41, 3),
        (0.999999, 3, 0.75, 3),  # of three: 4/9, 3/9, 2/9; two reach 0.75
        (0.999999, 3, 0.78, 2),
    ],
)
def test_a_draw_inverts_the_truncated_distribution(uniform: float, top_k: int, top_p: float, token: int) -> None:
    found = draw(PROBS.log(), temperature=[1.0], top_k=[top_k], top_p=[top_p], uniform=[uniform])
    assert found.tolist() == [token]


def test_temperature_sharpens_before_the_truncation() -> None:
    # Temperature 0.5 squares: 0.16, 0.09, 0.04, 0.01 of 0.30; the likeliest alone has 0.533.
    for uniform, token in ((0.53, 1), (0.54, 3)):
        assert draw(PROBS.log(), temperature=[0.5], top_k=[0], top_p=[1.0], uniform=[uniform]).tolist() == [token]
    assert draw(PROBS.log(), temperature=[0.5], top_k=[0], top_p=[0.53], uniform=[0.9999]).tolist() == [1]


def test_rows_of_a_batch_keep_their_own_parameters() -> None:
    found = draw(
        PROBS.log().repeat(3, 1),
        temperature=[1.0, 1.0, 0.5],
        top_k=[0, 2, 0],
        top_p=[1.0, 1.0, 0.53],
        uniform=[0.95, 0.95, 0.95],
    )
    assert found.tolist() == [0, 3, 1]


def test_log_probabilities_are_those_of_the_model_before_penalties() -> None:
    answer = make_answer(GenerationOptions(do_sample=False, presence_penalty=9.0, top_logprobs=2))
    answer.tokens = [1]
    (token,) = choose(PROBS.log(), [answer])
    assert isinstance(token, Token)
    assert (token.id, answer.tokens) == (3, [1, 3])
    assert token.logprob == pytest.approx(math.log(0.3))
    assert [(place, round(math.exp(value), 3)) for place, value in token.top] == [(1, 0.4), (3, 0.3)]
    assert report(PROBS[0].log(), 2, 0).top == ()


def test_greedy_and_drawn_rows_share_a_batch_and_a_seed_repeats() -> None:
    options = GenerationOptions(temperature=1.0, top_p=1.0, top_k=0, seed=3)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))

    def tokens(together: bool) -> list[int]:
        answer, other = make_answer(options), make_answer(limit=99)
        for _ in range(8):
            rows = [other, answer] if together else [answer]
            choose(logits.repeat(len(rows), 1), rows)
        return answer.tokens

    assert tokens(together=True) == tokens(together=False) == tokens(together=False)
    assert len(set(tokens(together=False))) > 3


def test_logits_without_a_number_fail_their_row_alone() -> None:
    logits = PROBS.log().repeat(2, 1)
    logits[0, 2] = float("nan")
    bad, good = make_answer(), make_answer()
    failed, token = choose(logits, [bad, good])
    assert isinstance(failed, ModelError)
    assert "after 1 tokens hold no usable number" in str(failed)
    assert (bad.tokens, token) == ([], Token(1))


def test_an_answer_is_finished_at_its_limit_or_a_stop_token() -> None:
    answer = make_answer(limit=2)
    assert not answer.is_finished
    answer.tokens = [7]
    assert answer.is_finished
    answer.tokens = [1, 1]
    assert answer.is_finished
