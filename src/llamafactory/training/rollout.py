"""Rounds of experience: prompts become answered, scored batches that the following updates learn from.

A round covers `plan.num_updates` updates. Before the first of them the present policy answers all its prompts, the
answers are scored, and advantages are whitened over the whole round and all processes; the updates of the round are
then passed over `plan.num_passes` times. Knows no loss and no kind of reward model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from llamafactory.data.collate import Collator
from llamafactory.errors import CheckpointError
from llamafactory.objectives import Batch, supervised
from llamafactory.rendering.tokens import IGNORE_INDEX
from llamafactory.training.advantages import (
    advantages_of,
    mean_and_variance,
    moment_sums,
    token_rewards,
    whiten,
)
from llamafactory.training.answers import AnswerSampler, Key
from llamafactory.training.kl_control import KlControl
from llamafactory.training.rewards import Reward
from llamafactory.training.rollout_log import RolloutLog, Sample
from llamafactory.training.running_moments import RunningMoments
from llamafactory.training.scoring import TokenScorer


@dataclass(frozen=True)
class RoundPlan:
    """The shape of a round.

    num_updates: updates whose prompts are answered together. num_passes: times each of them is learned from.
    batches_per_update: micro-batches of one process. rank, world_size: this process among all. seed: of the answers.
    """

    num_updates: int
    num_passes: int
    batches_per_update: int
    rank: int
    world_size: int
    seed: int


@dataclass(frozen=True)
class Returns:
    """How rewards become returns. gamma, lam: see `advantages_of`. whiten_rewards: scale rewards to variance 1."""

    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False


@dataclass
class Experience:
    """One answered micro-batch on its way to a batch to learn from. Matrices [B, T-1], one column a predicted token."""

    batch: dict[str, Tensor]
    sequences: list[list[int]]
    prompt_lengths: list[int]
    mask: Tensor
    logps: Tensor
    log_ratios: Tensor
    values: Tensor
    entropy: Tensor
    scores: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def kl(self) -> Tensor:
        """[B] log p - log p_ref, summed over the response."""
        return self.log_ratios.sum(-1)

    @property
    def counted(self) -> Tensor:
        """[B] bool, False for copies that only fill up a batch."""
        return self.batch["counted"]

    def finished(self, advantages: Tensor, returns: Tensor, kl_coef: float) -> Batch:
        """The columns the objective reads; see `objectives.ppo.COLUMNS`."""
        names = {"old_logps": self.logps, "old_values": self.values, "advantages": advantages, "returns": returns}
        columns = {name: matrix[self.mask] for name, matrix in names.items()}
        columns |= {"entropy": self.entropy, "scores": self.scores, "kl": self.kl}
        return {**self.batch, **columns, "kl_coef": self.kl.new_tensor(kl_coef)}


class Rollout:
    """The preparation of an on-policy stage; see `preparation.Preparation`.

    scorer: asks policy and reference about answers. reward: scores them. norm: moments by which scores are normalised,
    or None to take them as they are. log: where samples of each round are written.
    """

    def __init__(
        self,
        plan: RoundPlan,
        *,
        sampler: AnswerSampler,
        scorer: TokenScorer,
        reward: Reward,
        kl_control: KlControl,
        returns: Returns,
        norm: RunningMoments | None,
        log: RolloutLog,
    ) -> None:
        self._plan, self._sampler, self._scorer, self._reward = plan, sampler, scorer, reward
        self._kl_control, self._returns, self._norm, self._log = kl_control, returns, norm, log
        self._rows = Collator(pad_token_id=sampler.pad_token_id, pad_to_multiple_of=8)
        self._num_updates_done = 0
        self._round: list[list[Batch]] = []

    @property
    def _place(self) -> int:
        """Updates of the present round that are done."""
        return self._num_updates_done % (self._plan.num_updates * self._plan.num_passes)

    def num_updates(self) -> int:
        """All of a round before its first update, then one at a time."""
        return 1 if self._place else self._plan.num_updates

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]:
        """Training: the answered batches of the present update. Evaluation: the batches, answered."""
        if not training:
            return self._answered(model, batches, [self._evaluation_keys(batch) for batch in batches])
        plan = self._plan
        if not self._place:
            keys = [self._training_keys(place, batch) for place, batch in enumerate(batches)]
            done = self._answered(model, batches, keys, learning=True)
            size = plan.batches_per_update
            self._round = [done[start : start + size] for start in range(0, len(done), size)]
        update = self._round[self._place % plan.num_updates]
        if len(update) != len(batches) and self._place:
            raise _other_shape(len(update), len(batches))
        self._num_updates_done += 1
        if not self._place:
            self._round = []
        return update

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold: the round that is being learned from, and all running numbers."""
        found: dict[str, object] = {"num_updates_done": self._num_updates_done, "kl_coef": self._kl_control.coef}
        norm = None if self._norm is None else self._norm.state()
        return found | {"norm": norm, "round": self._round, "world_size": self._plan.world_size}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue from what `state` returned. Raises CheckpointError in the middle of a round of other processes."""
        self._num_updates_done = cast("int", state["num_updates_done"])
        self._kl_control.coef = cast("float", state["kl_coef"])
        self._round = cast("list[list[Batch]]", state["round"])
        if self._norm is not None:
            self._norm.restore(cast("Mapping[str, float]", state["norm"]))
        if self._round and state["world_size"] != self._plan.world_size:
            raise CheckpointError(
                f"resume_from_checkpoint: the checkpoint is in the middle of a round of answers made by "
                f"{state['world_size']} processes, and now there are {self._plan.world_size}; start as many as then, "
                "or give a checkpoint between two rounds"
            )

    def _training_keys(self, place: int, batch: Batch) -> list[Key]:
        """An answer is known by the number of its round and its place among the prompts of all processes."""
        plan, size = self._plan, batch["counted"].numel()
        first = (place * plan.world_size + plan.rank) * size
        return [("train", plan.seed, self._num_updates_done, first + row) for row in range(size)]

    def _evaluation_keys(self, batch: Batch) -> list[Key]:
        """The same prompt draws the same numbers in every evaluation."""
        return [("evaluation", self._plan.seed, tuple(prompt)) for prompt in _prompts(batch)]

    @torch.no_grad()
    def _answered(
        self, model: nn.Module, batches: Sequence[Batch], keys: Sequence[Sequence[Key]], *, learning: bool = False
    ) -> list[Batch]:
        with _evaluating(model):
            found = [self._experience(model, batch, own) for batch, own in zip(batches, keys, strict=True)]
            self._add_scores(found)
        scores = self._normalised(found, learning=learning)
        kl_coef = self._kl_control.coef
        rewards = [
            token_rewards(item.log_ratios, score, item.mask, kl_coef) for item, score in zip(found, scores, strict=True)
        ]
        if self._returns.whiten_rewards and learning:
            rewards = _whitened(rewards, found, shift_mean=False)
        advantages = [
            advantages_of(reward, item.values, item.mask, gamma=self._returns.gamma, lam=self._returns.lam)
            for reward, item in zip(rewards, found, strict=True)
        ]
        returns = [advantage + item.values for advantage, item in zip(advantages, found, strict=True)]
        if learning:
            advantages = _whitened(advantages, found)
            self._close_round(found)
        parts = zip(found, advantages, returns, strict=True)
        return [item.finished(advantage, target, kl_coef) for item, advantage, target in parts]

    def _experience(self, model: nn.Module, batch: Batch, keys: Sequence[Key]) -> Experience:
        """Answer one micro-batch of prompts and ask policy and reference about the answers."""
        prompts, counted = _prompts(batch), batch["counted"]
        answers = self._sampler(model, batch, keys)
        labels = [
            [IGNORE_INDEX] * len(prompt) + (answer if counts else [IGNORE_INDEX] * len(answer))
            for prompt, answer, counts in zip(prompts, answers, counted.tolist(), strict=True)
        ]
        sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [{"input_ids": ids, "labels": own} for ids, own in zip(sequences, labels, strict=True)]
        joined = {name: value.to(counted.device) for name, value in self._rows(rows).items()}
        scores = self._scorer(model, joined)
        mask = supervised(joined)
        log_ratios = scores.logps - _given(scores.reference_logps)
        return Experience(
            batch={**joined, "counted": counted},
            sequences=sequences,
            prompt_lengths=[len(prompt) for prompt in prompts],
            mask=mask,
            logps=_spread(scores.logps, mask),
            log_ratios=_spread(log_ratios, mask),
            values=_spread(_given(scores.values), mask),
            entropy=scores.stats["entropy"],
        )

    def _add_scores(self, found: Sequence[Experience]) -> None:
        """Score all answers of this process in one call."""
        sequences = [sequence for item in found for sequence in item.sequences]
        scores = torch.tensor(self._reward(sequences), dtype=torch.float32)
        for item, part in zip(found, scores.split([len(item.sequences) for item in found]), strict=True):
            item.scores = part.to(item.mask.device)

    def _normalised(self, found: Sequence[Experience], *, learning: bool) -> list[Tensor]:
        if self._norm is None:
            return [item.scores for item in found]
        if learning:
            self._norm.add(reduce(moment_sums([item.scores[item.counted] for item in found]), reduction="sum"))
        return [self._norm.normalise(item.scores) for item in found]

    def _close_round(self, found: Sequence[Experience]) -> None:
        """Adapt the coefficient of the next round, and write samples of this one."""
        count, total, _ = reduce(moment_sums([item.kl[item.counted] for item in found]), reduction="sum").tolist()
        self._log.write(self._num_updates_done, (sample for item in found for sample in _samples(item)))
        if count:
            self._kl_control.update(total / count, int(count))


def _whitened(matrices: Sequence[Tensor], found: Sequence[Experience], *, shift_mean: bool = True) -> list[Tensor]:
    """Whiten the response tokens of all parts by the moments over all parts and processes."""
    masks = [item.mask for item in found]
    sums = moment_sums([matrix[mask] for matrix, mask in zip(matrices, masks, strict=True)])
    mean, variance = mean_and_variance(reduce(sums, reduction="sum"))
    return [
        whiten(matrix, mean, variance, shift_mean=shift_mean) * mask
        for matrix, mask in zip(matrices, masks, strict=True)
    ]


def _prompts(batch: Batch) -> list[list[int]]:
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def _samples(item: Experience) -> Iterator[Sample]:
    rows = zip(
        item.sequences, item.prompt_lengths, item.scores.tolist(), item.kl.tolist(), item.counted.tolist(), strict=True
    )
    for sequence, length, score, kl, counts in rows:
        if counts:
            yield Sample(sequence[:length], sequence[length:], score, kl)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values of the tokens in `mask` [B, T] -> [B, T], 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _given(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("a rollout needs a reference policy and a value head, but the scorer answered without")
    return values


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _other_shape(then: int, now: int) -> CheckpointError:
    return CheckpointError(
        f"resume_from_checkpoint: the checkpoint is in the middle of a round of answers in {then} batches an update, "
        f"and now an update has {now}; set gradient_accumulation_steps as it was, or give a checkpoint between two "
        "rounds"
    )
