"""Sampled answers: the right distribution, whatever the batch, and cut where they end."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.training.models import tiny_model, with_lora
from torch import Tensor, nn

from llamafactory.config.sections.generation import GenerationConfig
from llamafactory.data.prompts import PromptCollator
from llamafactory.errors import ConfigError, ModelError
from llamafactory.training.answers import AnswerSampler, uniform_draws

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 6}


def sampler(stop_ids: tuple[int, ...] = (2,), **options: object) -> AnswerSampler:
    return AnswerSampler(GenerationConfig(**PLAIN | options), stop_ids, 0, nullcontext)


def prompts(*rows: list[int]) -> dict[str, Tensor]:
    return PromptCollator(0)([{"input_ids": row} for row in rows])


def test_prompts_are_padded_on_the_left() -> None:
    batch = PromptCollator(0)([{"input_ids": [5, 6]}, {"input_ids": [7], "is_copy": True}])
    assert batch["input_ids"].tolist() == [[5, 6], [0, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["counted"].tolist() == [True, False]


@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_answers_are_the_likeliest_tokens(adapted: bool) -> None:
    model: nn.Module = with_lora(tiny_model()) if adapted else tiny_model()
    answers = sampler(stop_ids=(), do_sample=False)(model, prompts(*PROMPTS), [()] * 3)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer


def test_an_answer_does_not_depend_on_its_batch() -> None:
    model, keys = tiny_model(), [("a", 0), ("a", 1), ("b", 0)]
    together = sampler()(model, prompts(*PROMPTS), keys)
    alone = [sampler()(model, prompts(prompt), [key])[0] for prompt, key in zip(PROMPTS, keys, strict=True)]
    assert together == alone
    assert len({tuple(answer) for answer in together}) == 3
    assert sampler()(model, prompts(PROMPTS[0]), [("c", 0)])[0] != together[0]


def test_tokens_are_drawn_with_their_probabilities() -> None:
    model = tiny_model(vocab_size=12)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        expected = model(input_ids=torch.tensor([[5]])).logits[0, -1].softmax(-1)
    num = 4000
    answers = sampler(stop_ids=(), max_new_tokens=1)(model, prompts(*[[5]] * num), [(index,) for index in range(num)])
    counts = torch.tensor([token for (token,) in answers]).bincount(minlength=12)
    assert torch.allclose(counts / num, expected, atol=4 * (0.25 / num) ** 0.5)


def test_unlikely_tokens_can_be_left_out() -> None:
    model = tiny_model()
    likeliest = model(input_ids=torch.tensor([[5]])).logits[0, -1].topk(3).indices.tolist()
    keys = [(index,) for index in range(64)]
    answers = sampler(stop_ids=(), max_new_tokens=1, top_k=3)(model, prompts(*[[5]] * 64), keys)
    assert {token for (token,) in answers} == set(likeliest)


def test_an_answer_ends_behind_its_first_stop_token() -> None:
    model = tiny_model()
    whole = sampler(stop_ids=(), do_sample=False)(model, prompts(PROMPTS[0]), [()])[0]
    cut = sampler(stop_ids=(whole[2], whole[4]), do_sample=False)(model, prompts(*PROMPTS), [()] * 3)[0]
    assert cut == whole[: whole.index(whole[2]) + 1]
    assert sampler(stop_ids=(whole[0],), do_sample=False)(model, prompts(PROMPTS[0]), [()])[0] == whole[:1]


def test_the_models_own_generation_settings_are_left_alone() -> None:
    model = tiny_model()
    before = model.generation_config
    before.max_length = 7
    assert len(sampler(stop_ids=())(model, prompts(PROMPTS[0]), [()])[0]) == 6
    assert model.generation_config is before and before.max_length == 7


def test_a_prompt_without_room_for_an_answer() -> None:
    with pytest.raises(ConfigError, match=r"cutoff_len: a prompt of 128 tokens leaves no room.*lower cutoff_len"):
        sampler()(tiny_model(), prompts([5] * 128), [()])
    assert len(sampler(stop_ids=(), max_new_tokens=0, max_length=7)(tiny_model(), prompts(PROMPTS[0]), [()])[0]) == 2


def test_a_broken_policy_says_so() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"probabilities are no longer finite.*lower learning_rate"):
        sampler()(model, prompts(PROMPTS[0]), [()])


def test_draws_are_the_same_everywhere() -> None:
    assert uniform_draws(2, ("train", 42, 0, 3)).tolist() == uniform_draws(2, ("train", 42, 0, 3)).tolist()
    assert uniform_draws(2, ("train", 42, 0, 3)).tolist() != uniform_draws(2, ("train", 42, 0, 4)).tolist()
