"""Scoring equals the model's own loss, in every layout, chunked or whole."""

from __future__ import annotations

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
    tiny_model,
    with_lora,
)  # fmt: skip
from torch import Tensor, nn

from llamafactory.errors import ModelError
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.objectives.sft import Asft
from llamafactory.training.reference import AdapterOff, FrozenCopy, build_reference
from llamafactory.training.scoring import TokenScorer, kept_positions, token_logps

LENGTHS = (24, 9, 17)


def our_loss(model: nn.Module, batch: dict[str, Tensor], **options: object) -> Tensor:
    objective = CrossEntropy()
    scores = TokenScorer(objective, **options)(model, batch)
    return objective(scores, batch).loss_sum / objective.count(batch)


def stock_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    count = (batch["labels"][:, 1:] != -100).sum()
    try:
        return model(**batch, use_cache=False, num_items_in_batch=count).loss
    except TypeError:
        return model(**batch, use_cache=False).loss


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_stock_loss(family: str, lora: bool) -> None:
    model = tiny_model(family)
    model = with_lora(model) if lora else model
    batch = padded(examples(LENGTHS))
    stock = stock_loss(model, batch)
    stock.backward()
    expected = gradients(model)
    for options in ({}, {"max_logits": 5 * VOCAB}):
        loss = our_loss(model, batch, **options)
        loss.backward()
        assert loss.item() == pytest.approx(stock.item(), abs=1e-6)
        assert largest_difference(expected, gradients(model)) < 2e-6  # float32 in another order of summation

    batch["labels"][0, -1] = -100
    our_loss(model, batch).backward()
    assert largest_difference(expected, gradients(model)) > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flat_and_packed_tokens_score_as_padded_ones(family: str, attention: str) -> None:
    model = tiny_model(family, attn_implementation=attention)
    rows = examples(LENGTHS)
    scorer = TokenScorer(CrossEntropy())
    alone = torch.cat([scorer(model, padded([row])).logps for row in rows])
    assert torch.allclose(scorer(model, padded(rows)).logps, alone, atol=1e-5)
    assert torch.allclose(scorer(model, flat(rows)).logps, alone, atol=1e-5)
    packed = {name: torch.cat([value, value]) for name, value in flat(rows).items()}
    assert torch.allclose(scorer(model, packed).logps, torch.cat([alone, alone]), atol=1e-5)
    leaking = flat(rows) | {"attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.long)}
    assert not torch.allclose(scorer(model, leaking).logps, alone, atol=1e-3)


def test_the_first_token_of_a_segment_is_no_target() -> None:
    rows = examples((4, 5))
    for row in rows:
        row["labels"] = list(row["input_ids"])
    kept = kept_positions(flat(rows))
    assert kept.index.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert kept.rows.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert kept.targets.tolist() == rows[0]["input_ids"][1:] + rows[1]["input_ids"][1:]
    assert CrossEntropy().count(flat(rows)).item() == 7


def test_weights_and_rows_follow_the_targets() -> None:
    batch = padded(examples((6, 3)))
    batch["weights"] = torch.arange(12.0).reshape(2, 6)
    kept = kept_positions(batch)
    assert kept.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert kept.weights.tolist() == [2.0, 3.0, 4.0, 5.0, 7.0, 8.0]


def test_logits_are_computed_at_supervised_positions_only() -> None:
    model = tiny_model()
    batch = padded(examples(LENGTHS))
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    TokenScorer(CrossEntropy())(model, batch)
    assert seen == [CrossEntropy().count(batch).item()]
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("max_logits", [2**25, VOCAB])
def test_a_batch_without_supervised_tokens_adds_exactly_nothing(max_logits: int) -> None:
    model = tiny_model("mixtral")
    batch = padded(examples(LENGTHS))
    batch["labels"].fill_(-100)
    objective = CrossEntropy(label_smoothing=0.1, accuracy=True)
    loss = objective(TokenScorer(objective, max_logits=max_logits)(model, batch), batch).loss_sum
    loss.backward()
    found = gradients(model)
    assert loss.item() == 0.0
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert all(not gradient.any() for gradient in found.values())


def test_token_logps_agree_with_log_softmax_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    expected = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    assert torch.allclose(token_logps(logits, targets), expected)
    assert torch.autograd.gradcheck(lambda x: token_logps(x, targets), logits)


def test_a_model_with_logits_of_its_own_is_scored_whole(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    batch = padded(examples(LENGTHS))
    expected = our_loss(model, batch)

    class Odd(nn.Module):
        """Calls the model and squares its logits."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.get_output_embeddings()

        def forward(self, **inputs: Tensor) -> object:
            output = self.inner(**inputs)
            output.logits = output.logits**2
            return output

    odd = Odd(model)
    scorer = TokenScorer(CrossEntropy(), max_logits=4 * VOCAB)
    whole = TokenScorer(CrossEntropy())
    assert torch.equal(scorer(odd, batch).logps, whole(odd, batch).logps)
    assert not torch.allclose(scorer(odd, batch).logps.sum(), -expected * CrossEntropy().count(batch))


def test_a_model_without_output_embedding_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="LlamaModel has no output embedding"):
        TokenScorer(CrossEntropy())(model.model, padded(examples(LENGTHS)))


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "lm_head"]])
@pytest.mark.parametrize("max_logits", [2**25, 5 * VOCAB])
def test_switching_adapters_off_equals_a_frozen_copy(target: object, max_logits: int) -> None:
    base = tiny_model(tie_word_embeddings=False)
    frozen = tiny_model(tie_word_embeddings=False)
    model = with_lora(base, target_modules=target).train()
    objective, batch = Asft(alpha=0.5), padded(examples(LENGTHS))
    results = []
    for reference in (AdapterOff(model), FrozenCopy(frozen)):
        scores = TokenScorer(objective, reference, max_logits=max_logits)(model, batch)
        objective(scores, batch).loss_sum.backward()
        assert model.training
        results.append((scores, gradients(model)))
    (off, off_gradients), (copy, copy_gradients) = results
    assert off.reference_logps is not None and copy.reference_logps is not None
    assert torch.allclose(off.reference_logps, copy.reference_logps, atol=1e-5)
    assert not torch.allclose(off.reference_logps, off.logps, atol=1e-3)
    assert torch.allclose(off.stats["kl"], copy.stats["kl"], atol=1e-5)
    assert largest_difference(off_gradients, copy_gradients) < 1e-5
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_the_reference_of_a_full_model_is_a_copy_that_stays() -> None:
    model = tiny_model()
    reference = build_reference(model)
    assert isinstance(reference, FrozenCopy)
    with reference.active() as frozen:
        before = frozen.lm_head.weight.clone()
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
        assert torch.equal(frozen.lm_head.weight, before)
    assert isinstance(build_reference(with_lora(tiny_model())), AdapterOff)


@pytest.mark.parametrize("objective", [CrossEntropy(), CrossEntropy(label_smoothing=0.2), Asft(alpha=0.5)])
@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "lm_head"], None])
def test_chunks_change_neither_loss_nor_gradient(objective: CrossEntropy, target: object) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    model = model if target is None else with_lora(model, target_modules=target)
    batch = padded(examples(LENGTHS))
    results = []
    for max_logits in (2**25, 4 * VOCAB):
        scores = TokenScorer(objective, build_reference(model), max_logits=max_logits)(model, batch)
        loss = objective(scores, batch).loss_sum
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert largest_difference(results[0][1], results[1][1]) < 2e-5  # of a sum over all tokens


def test_a_frozen_head_is_called_once_per_chunk() -> None:
    model = with_lora(tiny_model())
    batch = padded(examples(LENGTHS))
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    objective = CrossEntropy()
    objective(TokenScorer(objective, max_logits=32 * VOCAB)(model, batch), batch).loss_sum.backward()
    count = int(objective.count(batch))
    assert calls == [8, 16, 16, count - 32] and count > 32
