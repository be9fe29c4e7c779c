"""PPO's loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamafactory.objectives import STAGES, Scores
from llamafactory.objectives.ppo import BeforeUpdate, Ppo
from llamafactory.rendering.records import Prompt


def batch(**columns: Tensor) -> dict[str, Tensor]:
    """Two sequences of two and one response tokens."""
    labels = torch.tensor([[-100, 5, 6], [-100, 7, -100]])
    defaults = {
        "labels": labels,
        "old_logps": torch.zeros(3),
        "old_values": torch.zeros(3),
        "advantages": torch.ones(3),
        "returns": torch.zeros(3),
        "entropy": torch.tensor([1.0, 2.0, 3.0]),
        "scores": torch.tensor([0.5, 2.5]),
        "kl": torch.tensor([0.25, 0.75]),
        "kl_coef": torch.tensor(0.125),
        "counted": torch.tensor([True, True]),
    }
    return defaults | columns


def scores(ratios: list[float], values: list[float]) -> Scores:
    logps = torch.tensor(ratios).log().requires_grad_()
    rows = torch.tensor([0, 0, 1])
    return Scores(logps, torch.tensor([5, 6, 7]), rows, torch.ones(3), values=torch.tensor(values).requires_grad_())


def test_the_stage_reads_prompts_and_needs_a_value_head() -> None:
    assert STAGES.load("ppo").RECORD is Prompt
    assert (Ppo().head, Ppo().needs_reference, BeforeUpdate().needs_reference) == ("both", False, True)
    assert Ppo().count(batch()).item() == 3


def test_policy_loss() -> None:
    # ratio 1.5 with A = 2: min(3.0, 1.2*2); ratio 0.5 with A = -2: min(-1.0, 0.8*-2); ratio 1.1 with A = 3: 3.3
    found = scores([1.5, 0.5, 1.1], [0.0, 0.0, 0.0])
    output = Ppo(value_weight=0.0)(found, batch(advantages=torch.tensor([2.0, -2.0, 3.0])))
    assert output.loss_sum.item() == pytest.approx(-2.4 + 1.6 - 3.3, abs=1e-6)
    assert output.metrics["policy_loss"].tolist() == pytest.approx([-4.1, 3.0])
    assert output.metrics["clip_fraction"].tolist() == [2.0, 3.0]
    output.loss_sum.backward()
    assert found.logps.grad is not None
    assert found.logps.grad.tolist() == pytest.approx([0.0, 0.0, -3.3], abs=1e-6)  # clipped tokens learn nothing


def test_value_loss() -> None:
    # 0.1: inside the clip, (0.1-1)^2; 0.5 -> 0.2: (0.2-1)^2 is the larger; 3 -> 0.2: (3-1)^2 is the larger
    output = Ppo()(scores([1.0, 1.0, 1.0], [0.1, 0.5, 3.0]), batch(advantages=torch.zeros(3), returns=torch.ones(3)))
    assert output.metrics["value_loss"].tolist() == pytest.approx([0.5 * (0.81 + 0.64 + 4.0), 3.0])
    assert output.loss_sum.item() == pytest.approx(0.1 * 0.5 * (0.81 + 0.64 + 4.0))


def test_a_sequence_that_became_too_unlike_adds_nothing() -> None:
    # sequence 0: mean ratio (1 + 20) / 2 > 10
    found = scores([1.0, 20.0, 2.0], [0.0, 0.0, 1.0])
    output = Ppo()(found, batch(advantages=torch.full((3,), -1.0)))
    assert output.loss_sum.item() == pytest.approx(2.0 + 0.1 * 0.5)
    output.loss_sum.backward()
    assert found.logps.grad is not None and found.logps.grad[:2].tolist() == [0.0, 0.0]


def test_metrics_of_the_rollout() -> None:
    metrics = Ppo()(scores([1.0, 1.0, 1.0], [0.0] * 3), batch()).metrics
    found = {name: metrics[name].tolist() for name in ("reward", "kl", "kl_coef", "response_length", "entropy")}
    assert found == {
        "reward": [3.0, 2.0], "kl": [1.0, 2.0], "kl_coef": [0.25, 2.0], "response_length": [3.0, 2.0],
        "entropy": [6.0, 3.0],
    }  # fmt: skip


def test_entropy_is_measured_in_nats() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -1e9, -1e9]])
    entropy = BeforeUpdate().token_stats(logits, torch.zeros(2, dtype=torch.long), None)["entropy"]
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy.tolist() == pytest.approx([math.log(4), expected])


def test_a_sequence_that_left_the_policy_far_behind_adds_nothing() -> None:
    found = scores([math.exp(80.0), math.exp(80.0), 1.0], [0.0, 0.0, 0.0])
    found = Scores(found.logps * 2, found.targets, found.rows, found.weights, values=found.values)  # e^160 is infinite
    output = Ppo(value_weight=0.0)(found, batch(advantages=torch.tensor([-1.0, -1.0, 2.0])))
    assert output.loss_sum.item() == pytest.approx(-2.0)
    output.loss_sum.backward()
    assert torch.isfinite(output.loss_sum)
