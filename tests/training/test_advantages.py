"""Rewards, advantages, whitening, the KL coefficient and running moments against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from llamafactory.training.advantages import advantages_of, mean_and_variance, moment_sums, token_rewards, whiten
from llamafactory.training.kl_control import KlControl
from llamafactory.training.running_moments import RunningMoments


def test_the_score_stands_on_the_last_token() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, False, False], [False, False, False, False]])
    ratios = torch.tensor([[9.0, 1.0, -2.0, 9.0], [0.5, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    rewards = token_rewards(ratios, torch.tensor([3.0, 4.0, 5.0]), mask, kl_coef=0.5)
    assert rewards.tolist() == [[0.0, -0.5, 4.0, 0.0], [3.75, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_generalised_advantages() -> None:
    rewards = torch.tensor([[7.0, 1.0, 0.0, 2.0, 7.0]])
    values = torch.tensor([[7.0, 0.5, 1.0, -1.0, 7.0]])
    mask = torch.tensor([[False, True, True, True, False]])
    # deltas with gamma 0.5: 1 + 0.5*1 - 0.5 = 1; 0 - 0.5 - 1 = -1.5; 2 + 0 + 1 = 3. gamma*lam = 0.25
    # A_3 = 3; A_2 = -1.5 + 0.25*3 = -0.75; A_1 = 1 - 0.25*0.75 = 0.8125
    found = advantages_of(rewards, values, mask, gamma=0.5, lam=0.5)
    assert found.tolist() == [[0.0, 0.8125, -0.75, 3.0, 0.0]]


def test_without_discount_advantage_plus_value_is_the_sum_of_rewards_to_come() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 6), torch.randn(2, 6)
    found = advantages_of(rewards, values, torch.ones(2, 6).bool(), gamma=1.0, lam=1.0)
    assert torch.allclose(found + values, rewards.flip(1).cumsum(1).flip(1), atol=1e-5)


def test_whitening() -> None:
    sums = moment_sums([torch.tensor([1.0, 2.0])]) + moment_sums([torch.tensor([6.0]), torch.tensor([])])
    mean, variance = mean_and_variance(sums)
    assert (mean, variance) == (3.0, 7.0)  # (4 + 1 + 9) / 2
    assert whiten(torch.tensor([3.0, 10.0]), mean, variance).tolist() == pytest.approx([0.0, 7**0.5])
    kept = whiten(torch.tensor([3.0, 10.0]), mean, variance, shift_mean=False)
    assert kept.tolist() == pytest.approx([3.0, 3.0 + 7**0.5])
    assert mean_and_variance(moment_sums([torch.tensor([2.0])])) == (2.0, 0.0)
    assert mean_and_variance(moment_sums([torch.tensor([])])) == (0.0, 0.0)


def test_the_coefficient_follows_its_target() -> None:
    control = KlControl(0.2, target=6.0)
    control.update(6.6, num_answers=1000)  # error 0.1
    assert control.coef == pytest.approx(0.2 * 1.01)
    control.update(60.0, num_answers=1000)  # error bounded to 0.2
    assert control.coef == pytest.approx(0.2 * 1.01 * 1.02)
    control.update(-3.0, num_answers=5000)  # error bounded to -0.2
    assert control.coef == pytest.approx(0.2 * 1.01 * 1.02 * 0.9)


def test_a_fixed_coefficient_stays() -> None:
    control = KlControl(0.2)
    control.update(60.0, num_answers=1000)
    assert control.coef == 0.2


def test_running_moments_are_those_of_everything_seen() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(5) * 3 + 2, torch.randn(1), torch.randn(40) - 7]
    moments = RunningMoments()
    for part in parts:
        moments.add(moment_sums([part]))
    everything = torch.cat(parts)
    assert moments.mean == pytest.approx(everything.mean().item(), rel=1e-5)
    assert moments.deviation == pytest.approx(everything.std().item(), rel=1e-5)
    again = RunningMoments()
    again.restore(moments.state())
    normalised = (everything - everything.mean()) / everything.std()
    assert torch.allclose(again.normalise(everything), normalised, atol=1e-5)


def test_the_first_score_alone_has_no_deviation() -> None:
    moments = RunningMoments()
    assert moments.normalise(torch.tensor([4.0])).item() == 4.0
    moments.add(moment_sums([torch.tensor([3.0])]))
    assert moments.normalise(torch.tensor([4.0])).item() == 1.0
