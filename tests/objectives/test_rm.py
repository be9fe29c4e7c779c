"""The ranking loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llamafactory.config.run import RunConfig
from llamafactory.objectives import STAGES, Scores
from llamafactory.objectives.rm import Ranking
from llamafactory.rendering.records import Preference


def scores(*values: float, aux_loss: float | None = None) -> Scores:
    none = torch.empty(0)
    aux = None if aux_loss is None else torch.tensor(aux_loss)
    return Scores(none, none.long(), none.long(), none, aux_loss=aux, values=torch.tensor(values, requires_grad=True))


def test_the_loss_of_two_pairs() -> None:
    # chosen 2 and 0, rejected 1 and 0: -log s(1) = 0.3132616875, -log s(0) = 0.6931471806
    given = scores(2.0, 0.0, 1.0, 0.0)
    batch = {"counted": torch.tensor([True, True])}
    output = Ranking()(given, batch)
    assert output.loss_sum.item() == pytest.approx(1.0064088681, abs=1e-6)
    assert Ranking().count(batch).item() == 2
    # d(loss)/d(chosen) = -(1 - s(d)): -0.2689414214 and -0.5; the opposite for the rejected
    output.loss_sum.backward()
    assert given.values is not None and given.values.grad is not None
    expected = [-0.2689414214, -0.5, 0.2689414214, 0.5]
    assert given.values.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_metrics_are_sums_and_counts_and_a_tie_is_not_right() -> None:
    output = Ranking()(scores(2.0, 0.0, -1.0, 1.0, 0.0, 3.0), {"counted": torch.tensor([True, True, True])})
    found = {name: pair.tolist() for name, pair in output.metrics.items()}
    assert found == {"accuracy": [1.0, 3.0], "rewards/chosen": [1.0, 3.0], "rewards/rejected": [4.0, 3.0]}


def test_pairs_that_do_not_count_add_nothing() -> None:
    given = scores(2.0, math.inf, 1.0, math.inf, aux_loss=0.5)
    output = Ranking()(given, {"counted": torch.tensor([True, False])})
    assert output.loss_sum.item() == pytest.approx(0.3132616875 + 0.5, abs=1e-6)
    assert output.metrics["accuracy"].tolist() == [1.0, 1.0]


def test_large_differences_stay_finite() -> None:
    output = Ranking()(scores(-500.0, 500.0), {"counted": torch.tensor([True])})
    assert output.loss_sum.item() == 1000.0


def test_the_stage_reads_preferences_and_values_alone() -> None:
    part = STAGES.load("rm")
    objective = part.build(RunConfig())
    assert part.RECORD is Preference
    assert (objective.head, objective.needs_reference) == ("value", False)
