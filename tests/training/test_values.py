"""Values: of whole sequences without any logits, and of tokens beside their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.training.models import (
    FAMILIES,
    VOCAB,
    examples,
    flat,
    gradients,
    largest_difference,
    padded,
    pairs,
    tiny_model,
    with_lora,
)  # fmt: skip
from torch import Tensor, nn

from llamafactory.data.collate import Collator
from llamafactory.data.pairs import PairCollator
from llamafactory.models.value_head import attach_value_head, required_value_head, value_head_of
from llamafactory.objectives import Head
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.training.scoring import SequenceScorer, TokenScorer
from llamafactory.training.sharing import choose_sharing

LENGTHS = (24, 9, 17)


@dataclass(frozen=True)
class WithValues(CrossEntropy):
    """A token loss that also reads values."""

    head: Head = "both"


def model_with_head(family: str = "llama", *, lora: bool = False, **options: object) -> nn.Module:
    model = tiny_model(family, **options)
    model = with_lora(model) if lora else model
    torch.manual_seed(2)
    attach_value_head(model, trainable=True)
    return model.eval()


def last_hidden(model: nn.Module, row: dict[str, list[int]]) -> Tensor:
    """Hidden states [T, H] before the output embedding, by a hook on a plain forward."""
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False)
    handle.remove()
    return seen[0][0]


def largest(tensors: dict[str, Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors.values())


def forbid_projection(model: nn.Module) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("the vocabulary projection ran")

    model.get_output_embeddings().register_forward_pre_hook(fail)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_has_the_value_of_its_last_token_and_no_logits(family: str, lora: bool) -> None:
    model = model_with_head(family, lora=lora)
    rows = examples(LENGTHS)
    head = required_value_head(model)
    expected = torch.stack([head(last_hidden(model, row)[-1]) for row in rows])
    expected.square().sum().backward()
    wanted = gradients(model)
    projection = model.get_output_embeddings()
    forbid_projection(model)
    scores = SequenceScorer()(model, padded(rows))
    assert model.get_output_embeddings() is projection
    assert scores.values is not None and torch.allclose(scores.values, expected, atol=1e-5)
    assert (scores.aux_loss is not None) == (family in ("mixtral", "qwen3_moe"))
    scores.values.square().sum().backward()
    assert largest_difference(wanted, gradients(model)) < 1e-5 * largest(wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flat_and_left_padded_sequences_have_the_same_values(family: str) -> None:
    model = model_with_head(family)
    rows = examples(LENGTHS)
    expected = SequenceScorer()(model, padded(rows)).values
    assert torch.allclose(SequenceScorer()(model, flat(rows)).values, expected, atol=1e-5)
    left = padded([{name: value[::-1] for name, value in row.items() if name != "length"} for row in rows])
    left = {name: value.flip(1) for name, value in left.items()}
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert torch.allclose(SequenceScorer()(model, left).values, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pairs_that_share_a_prompt_have_the_same_values(attention: str) -> None:
    model = model_with_head("llama", attn_implementation=attention)
    rows = pairs((24, 9, 17))
    plain = PairCollator(Collator(pad_token_id=0))(rows)
    shared = PairCollator(Collator(pad_token_id=0), choose_sharing(model, 64))(rows)
    assert "last_index" in shared and "last_index" not in plain
    found = SequenceScorer()(model, shared).values
    assert found is not None and torch.allclose(found, SequenceScorer()(model, plain).values, atol=1e-5)


@pytest.mark.parametrize("max_logits", [2**25, 5 * VOCAB], ids=["whole", "chunks"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_tokens_have_values_beside_their_logps(lora: bool, max_logits: int) -> None:
    model = model_with_head(lora=lora)
    rows = examples(LENGTHS)
    head = required_value_head(model)
    plain = TokenScorer(CrossEntropy())(model, padded(rows))
    assert plain.values is None
    for batch in (padded(rows), flat(rows)):
        scores = TokenScorer(WithValues(), max_logits=max_logits)(model, batch)
        expected = torch.cat([head(last_hidden(model, row)[len(row["input_ids"]) // 3 - 1 : -1]) for row in rows])
        assert scores.values is not None and torch.allclose(scores.values, expected, atol=1e-5)
        assert torch.allclose(scores.logps, plain.logps, atol=1e-5)
    expected.square().sum().backward()
    wanted = gradients(model)
    scores.values.square().sum().backward()
    assert largest_difference(wanted, gradients(model)) < 1e-5 * largest(wanted)


def test_the_head_is_no_part_of_the_model_it_sits_on() -> None:
    model = model_with_head(lora=True)
    assert value_head_of(model) is not None
    assert value_head_of(model.get_base_model()) is None
