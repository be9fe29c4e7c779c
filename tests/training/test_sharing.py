"""Both answers of a pair in one row: the same numbers as two rows, or not at all."""

from __future__ import annotations

import pytest
import torch
from tests.training.models import FAMILIES, gradients, largest_difference, pair_examples, tiny_model, with_lora
from torch import Tensor, nn

from llamafactory.data.collate import Collator
from llamafactory.data.pairs import Mask, PairCollator
from llamafactory.objectives.dpo import Dpo
from llamafactory.objectives.simpo import Simpo
from llamafactory.training.reference import build_reference
from llamafactory.training.scoring import TokenScorer
from llamafactory.training.sharing import choose_sharing
from llamafactory.training.trainer import real_tokens

SHAPES = ((20, 4, 6), (16, 7, 2), (25, 1, 1), (12, 3, 5))
# Windows of 8 tokens, router losses, positions in the attention itself.
PLAIN = {"gemma2", "gemma3_text", "mixtral", "qwen3_moe", "bloom"}


def collate(sharing: Mask | None, layout: str = "padded") -> dict[str, Tensor]:
    rows = Collator(pad_token_id=0, layout=layout, pad_to_multiple_of=8)
    return PairCollator(rows, sharing)(pair_examples(SHAPES))


def run(model: nn.Module, batch: dict[str, Tensor], objective: Simpo | Dpo) -> tuple[float, dict[str, Tensor]]:
    reference = build_reference(model) if objective.needs_reference else None
    loss = objective(TokenScorer(objective, reference)(model, batch), batch).loss_sum
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_no_gradient(family: str) -> None:
    model = tiny_model(family)
    mask = choose_sharing(model, 64)
    assert (mask is None) == (family in PLAIN)
    if mask is None:
        return
    shared = collate(mask)
    assert shared["input_ids"].shape[0] == len(SHAPES)
    simpo = Simpo(beta=2.0, averaged=True)
    (loss, slopes), (plain_loss, plain_slopes) = run(model, shared, simpo), run(model, collate(None), simpo)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert largest_difference(slopes, plain_slopes) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sharing_with_adapters_and_a_reference(attention: str) -> None:
    model = with_lora(tiny_model(attn_implementation=attention), init_lora_weights=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    mask = choose_sharing(model, None)
    assert mask == {"sdpa": "bool", "eager": "additive"}[attention]
    results = [run(model, collate(sharing), Dpo(beta=0.1)) for sharing in (mask, None)]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert largest_difference(results[0][1], results[1][1]) < 1e-5


def test_a_leak_between_the_answers_would_be_noticed() -> None:
    model, simpo = tiny_model(), Simpo(beta=2.0, averaged=True)
    batch = collate("bool")
    everything = torch.ones_like(batch["attention_mask"]).tril()
    leaking, plain = run(model, batch | {"attention_mask": everything}, simpo), run(model, collate(None), simpo)
    assert largest_difference(leaking[1], plain[1]) > 1e-3


def test_a_window_that_no_sequence_outgrows_is_no_obstacle() -> None:
    model = tiny_model("mistral", sliding_window=64)
    assert choose_sharing(model, 64) == "bool"
    assert choose_sharing(model, 65) is None and choose_sharing(model, None) is None


def test_layouts_agree_on_pairs() -> None:
    model, simpo = tiny_model(), Simpo(beta=2.0, averaged=True)
    losses = [run(model, collate(None, layout), simpo)[0] for layout in ("padded", "flat")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("sharing", ["bool", "additive"])
def test_padding_is_not_counted(sharing: Mask) -> None:
    assert real_tokens(collate(sharing)["attention_mask"]).item() == sum(map(sum, SHAPES))
    assert real_tokens(collate(None)["attention_mask"]).item() == sum(2 * p + c + r for p, c, r in SHAPES)
