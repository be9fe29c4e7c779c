"""Each token loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.loss import LossConfig
from llamafactory.config.sections.training import TrainingConfig
from llamafactory.errors import ConfigError
from llamafactory.objectives import Objective, Scores, pt, sequence_sums, sft, supervised
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.objectives.sft import Asft, Dft, Eaft
from llamafactory.parts import Family

# Two tokens over a vocabulary of four. Soft-max of log-odds: p1 = (1/2, 1/4, 1/8, 1/8), p2 = (1/10, 2/10, 3/10, 4/10).
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
TARGETS = torch.tensor([1, 3])
NLL = (math.log(4), math.log(2.5))  # 1.386294, 0.916291


def score(objective: Objective, *, weights: list[float] | None = None, reference: Tensor | None = None) -> Scores:
    logits = PROBABILITIES.log() + 7.0  # a constant shift changes no probability
    reference_logits = None if reference is None else reference.log() - 2.0
    return Scores(
        logps=logits.log_softmax(-1).gather(-1, TARGETS[:, None]).squeeze(-1),
        targets=TARGETS,
        rows=torch.tensor([0, 0]),
        weights=torch.tensor(weights or [1.0, 1.0]),
        stats=objective.token_stats(logits, TARGETS, reference_logits),
    )


def loss(objective: Objective, **options: object) -> float:
    return objective(score(objective, **options), {}).loss_sum.item()


def test_cross_entropy_sums_the_negative_log_likelihood() -> None:
    assert loss(CrossEntropy()) == pytest.approx(2.302585, abs=1e-6)  # ln 4 + ln 2.5 = ln 10


def test_weights_scale_each_token_and_not_the_count() -> None:
    assert loss(CrossEntropy(), weights=[0.5, 2.0]) == pytest.approx(0.693147 + 1.832581, abs=1e-5)
    batch = {"labels": torch.tensor([[-100, 5, 6]]), "weights": torch.tensor([[0.0, 0.5, 2.0]])}
    assert CrossEntropy().count(batch).item() == 2


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    # mean_v -log p: token 1 (ln2 + ln4 + ln8 + ln8)/4 = 9/4 ln 2 = 1.559581
    # token 2 (ln10 + ln5 + ln(10/3) + ln(5/2))/4 = 1.508083
    expected = 0.9 * 2.302585 + 0.1 * (1.559581 + 1.508083)
    assert loss(CrossEntropy(label_smoothing=0.1)) == pytest.approx(expected, abs=1e-5)


def test_dft_weighs_each_token_with_its_probability_without_gradient() -> None:
    # 1/4 * ln 4 + 4/10 * ln 2.5
    assert loss(Dft()) == pytest.approx(0.346574 + 0.366516, abs=1e-5)
    logps = torch.tensor([math.log(0.25)], requires_grad=True)
    Dft().token_loss(Scores(logps, TARGETS[:1], TARGETS[:1], torch.ones(1))).sum().backward()
    assert logps.grad is not None and logps.grad.item() == pytest.approx(-0.25)


def test_eaft_weighs_each_token_with_the_entropy_of_the_most_likely_ones() -> None:
    # H1 = 1/2 ln2 + 1/4 ln4 + 2/8 ln8 = 7/4 ln 2 = 1.213008; H2 = 1.279854
    expected = 1.213008 / 3 * NLL[0] + 1.279854 / 3 * NLL[1]
    assert loss(Eaft(alpha=1.0)) == pytest.approx(expected, abs=1e-5)
    squared = (1.213008 / 3) ** 2 * NLL[0] + (1.279854 / 3) ** 2 * NLL[1]
    assert loss(Eaft(alpha=2.0)) == pytest.approx(squared, abs=1e-5)


def test_eaft_looks_at_twenty_tokens() -> None:
    logits = torch.cat([torch.zeros(1, 20), torch.full((1, 30), -1.0)], dim=1).requires_grad_()
    entropy = Eaft().token_stats(logits, torch.tensor([0]), None)["entropy"]
    assert entropy.item() == pytest.approx(math.log(20), abs=1e-5)
    assert not entropy.requires_grad


def test_asft_adds_the_divergence_from_the_reference() -> None:
    reference = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    # KL1 = 1/4 (ln 1/2 + ln 1 + ln 2 + ln 2) = 1/4 ln 2 = 0.173287; KL2 = 0
    expected = 0.346574 + 0.366516 + 0.1 * 0.173287
    assert loss(Asft(alpha=0.1), reference=reference) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="reference"):
        Asft().token_stats(PROBABILITIES, TARGETS, None)


def test_asft_pulls_the_policy_towards_the_reference() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    reference = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    Asft().token_stats(logits, torch.tensor([1]), reference)["kl"].sum().backward()
    # d KL / d logits = p - q: negative (push up) where the reference is likelier
    expected = torch.full((4,), 0.25) - reference[0].softmax(-1)
    assert logits.grad is not None and torch.allclose(logits.grad[0], expected, atol=1e-6)


def test_accuracy_and_nll_are_sum_and_count() -> None:
    objective = CrossEntropy(accuracy=True)
    metrics = objective(score(objective), {}).metrics
    assert metrics["accuracy"].tolist() == [1.0, 2.0]  # the second target is the likeliest token, the first is not
    assert metrics["nll"].tolist() == pytest.approx([2.302585, 2.0], abs=1e-5)
    assert "accuracy" not in CrossEntropy()(score(CrossEntropy()), {}).metrics


def test_router_loss_counts_once_per_token() -> None:
    scores = score(CrossEntropy())
    with_router = Scores(scores.logps, scores.targets, scores.rows, scores.weights, aux_loss=torch.tensor(0.5))
    assert CrossEntropy()(with_router, {}).loss_sum.item() == pytest.approx(2.302585 + 2 * 0.5, abs=1e-5)


def test_supervised_positions_predict_the_next_token() -> None:
    labels = torch.tensor([[7, -100, 8, 9], [7, 8, -100, -100]])
    assert supervised({"labels": labels}).tolist() == [[False, True, True], [True, False, False]]
    positions = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]])
    assert supervised({"labels": labels, "position_ids": positions}).tolist() == [[False, False, True], [False] * 3]


def config_of(*, smoothing: float = 0.0, accuracy: bool = False, **loss: object) -> RunConfig:
    return RunConfig(
        training=TrainingConfig(label_smoothing_factor=smoothing),
        finetuning=FinetuningConfig(compute_accuracy=accuracy),
        loss=LossConfig(**loss),
    )


def test_options_choose_the_loss() -> None:
    assert sft.build(config_of(accuracy=True)) == CrossEntropy(accuracy=True)
    assert sft.build(config_of(smoothing=0.1)) == CrossEntropy(label_smoothing=0.1)
    assert sft.build(config_of(use_dft_loss=True)) == Dft()
    assert sft.build(config_of(use_eaft_loss=True, eaft_alpha=0.5)) == Eaft(alpha=0.5)
    assert sft.build(config_of(use_asft_loss=True, asft_alpha=0.3)) == Asft(alpha=0.3)
    assert sft.build(config_of(use_asft_loss=True)).needs_reference
    assert not sft.build(config_of(use_dft_loss=True)).needs_reference
    assert pt.build(config_of(smoothing=0.2, accuracy=True)) == CrossEntropy(label_smoothing=0.2, accuracy=True)


def test_a_run_has_one_loss() -> None:
    with pytest.raises(ConfigError, match="use_dft_loss and use_asft_loss are both true, but a run has one loss"):
        sft.build(config_of(use_dft_loss=True, use_asft_loss=True))
    with pytest.raises(ConfigError, match=r"label_smoothing_factor: 0.1 has no effect with use_eaft_loss: true"):
        sft.build(config_of(smoothing=0.1, use_eaft_loss=True))


def test_every_stage_file_exports_its_contract() -> None:
    stages = Family(key="stage", package="llamafactory.objectives", exports=("RECORD", "build"))
    assert {"pt", "sft"} <= set(stages.names())
    for name in stages.names():
        stages.load(name)


def test_token_values_add_up_by_sequence() -> None:
    sums = sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 4)
    assert sums.tolist() == [1.0, 0.0, 6.0, 0.0]
