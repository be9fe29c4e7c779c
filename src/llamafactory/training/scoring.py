"""Log-probabilities of the supervised tokens of a batch, without the logits of the others.

The vocabulary projection, the soft-max and their gradients run on supervised positions alone, and in chunks when these
are many. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llamafactory.logs import notice
from llamafactory.models.value_head import last_positions, sequence_values
from llamafactory.objectives import Batch, Objective, Scores, supervised
from llamafactory.training.projection import Projection, UnknownLogitsError, aux_loss, project
from llamafactory.training.reference import ReferencePolicy

MAX_LOGITS = 2**25
"""Logits held at once: 128 MiB in fp32. A batch with more is scored in chunks: of this size where the output embedding
learns and chunks must be computed twice, of half of it where they cost nothing extra."""

NOT_MODEL_INPUTS = frozenset({
    "labels", "weights", "reference_logps", "length", "source", "counted", "desirable", "desirable_share", "kl",
    "delta", "kept_index", "kept_targets", "kept_rows", "last_index", "old_logps", "old_values", "advantages",
    "returns", "entropy", "scores", "kl_coef",
})  # fmt: skip
"""Columns of a batch that are for objectives or reports, not for the model."""

Part = tuple[Tensor, Tensor | None, dict[str, Tensor]]


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The columns of a batch that the model reads."""
    return {name: value for name, value in batch.items() if name not in NOT_MODEL_INPUTS}


class Scorer(Protocol):
    """What the trainer asks about a batch."""

    def __call__(self, model: nn.Module, batch: Batch) -> Scores: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """The supervised positions of a batch. index: [N] into the flattened [B*T] positions; the rest as in `Scores`."""

    index: Tensor
    targets: Tensor
    rows: Tensor
    weights: Tensor


def kept_positions(batch: Batch) -> Kept:
    """Where a batch is supervised: as it names itself (kept_*), or by its labels, in padded rows and in packed ones."""
    if "kept_index" in batch:
        targets = batch["kept_targets"]
        return Kept(batch["kept_index"], targets, batch["kept_rows"], torch.ones_like(targets, dtype=torch.float))
    labels = batch["labels"]
    row, column = supervised(batch).nonzero(as_tuple=True)
    targets = labels[row, column + 1]
    weights = batch["weights"][row, column + 1].float() if "weights" in batch else torch.ones_like(targets).float()
    rows = row
    if batch.get("position_ids") is not None:
        starts = (batch["position_ids"] == 0).flatten().cumsum(0) - 1
        rows = starts[row * labels.shape[1] + column + 1]
    return Kept(row * labels.shape[1] + column, targets, rows, weights)


class _TokenLogps(torch.autograd.Function):
    """log_softmax(logits)[target] that keeps the logits alone for the backward pass, and spends one buffer there."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        normaliser = logits.logsumexp(-1)
        ctx.save_for_backward(logits, targets, normaliser)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets, normaliser = ctx.saved_tensors
        gradient = gradients[0]
        out = (logits - normaliser[:, None]).exp_().mul_(-gradient[:, None])
        return out.scatter_add_(-1, targets[:, None], gradient[:, None]), None


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """[n, V] fp32, [n] -> [n] log p(target)."""
    result: Tensor = _TokenLogps.apply(logits, targets)
    return result


class _WithSlopes(torch.autograd.Function):
    """Values [n] whose derivatives by the rows of `hidden` [n, H] are known: value i depends on row i alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None


@dataclass
class TokenScorer:
    """Scores the supervised tokens of a batch for an objective, chunk by chunk when there are many.

    max_logits: see MAX_LOGITS. reference: needed when the objective says so.
    """

    objective: Objective
    reference: ReferencePolicy | None = None
    max_logits: int = MAX_LOGITS
    _chunkable: bool = field(default=True, init=False)
    _learns_from_stats: bool = field(default=False, init=False)

    def __call__(self, model: nn.Module, batch: Batch) -> Scores:
        """Run the model on a batch; gradients flow to `logps`, `stats` and `aux_loss`. Raises ModelError."""
        kept = kept_positions(batch)
        stored = batch.get("reference_logps")
        asks = self.objective.needs_reference and stored is None
        reference = self._reference(batch, kept) if asks else None
        policy = self._project(model, batch, kept, nullcontext, values=self.objective.head == "both")
        logps, reference_logps, stats = zip(*self._parts(model, policy, reference, kept.targets), strict=True)
        return Scores(
            logps=torch.cat(logps),
            targets=kept.targets,
            rows=kept.rows,
            weights=kept.weights,
            stats={name: torch.cat([part[name] for part in stats]) for name in stats[0]},
            reference_logps=stored if reference is None else torch.cat(reference_logps),
            aux_loss=policy.aux_loss,
            values=policy.values,
        )

    def _parts(self, model: nn.Module, policy: Projection, reference: Projection | None, targets: Tensor) -> list[Part]:
        """Scores of all chunks in order.

        A chunk's logits are freed at once. Under a frozen head the slope of each log-probability by its hidden state is
        kept in their place, which the backward pass would compute anyway; otherwise it computes the chunk again.
        """
        if policy.whole is not None:
            other = None if reference is None else _logits(reference, slice(None))
            return [self._score(policy.whole.float(), other, targets)]
        size = self._chunk_size(model)
        found = []
        for start in range(0, targets.numel(), size):
            place = slice(start, start + size)
            chunk = partial(self._chunk, policy, reference, targets, place)
            if not torch.is_grad_enabled():
                found.append(chunk(policy.hidden[place]))
            elif policy.head_learns or self._learns_from_stats:
                found.append(checkpoint(chunk, policy.hidden[place], use_reentrant=False))
            else:
                found.append(self._with_slopes(chunk, policy.hidden[place]))
        return found

    def _chunk(
        self, policy: Projection, reference: Projection | None, targets: Tensor, place: slice, hidden: Tensor
    ) -> Part:
        other = None if reference is None else _logits(reference, place)
        return self._score(policy.logits(hidden), other, targets[place])

    def _score(self, logits: Tensor, other: Tensor | None, targets: Tensor) -> Part:
        stats = self.objective.token_stats(logits, targets, other)
        return token_logps(logits, targets), None if other is None else token_logps(other, targets), stats

    def _with_slopes(self, chunk: Callable[[Tensor], Part], hidden: Tensor) -> Part:
        alone = hidden.detach().requires_grad_()
        logps, reference_logps, stats = chunk(alone)
        if any(value.requires_grad for value in stats.values()):
            self._learns_from_stats = True
            return checkpoint(chunk, hidden, use_reentrant=False)
        (slopes,) = torch.autograd.grad(logps.sum(), alone)
        return _WithSlopes.apply(hidden, logps.detach(), slopes), reference_logps, stats

    @torch.no_grad()
    def _reference(self, batch: Batch, kept: Kept) -> Projection:
        if self.reference is None:
            raise ValueError("the objective needs a reference policy, but the trainer was given none")
        with self.reference.active() as model:
            head = extract_model_from_parallel(model).get_output_embeddings()
            return self._project(model, batch, kept, partial(self.reference.active, head))

    def _project(
        self,
        model: nn.Module,
        batch: Batch,
        kept: Kept,
        switch: Callable[[], AbstractContextManager[object]],
        *,
        values: bool = False,
    ) -> Projection:
        run = partial(project, model, model_inputs(batch), kept.index, switch=switch, values=values)
        try:
            return run(max_tokens=self._chunk_size(model) if self._chunkable else kept.index.numel())
        except UnknownLogitsError:
            notice(f"{type(model).__name__} changes its logits in a way of its own: batches are scored in one piece")
            self._chunkable = False
            return run(max_tokens=kept.index.numel())

    def _chunk_size(self, model: nn.Module) -> int:
        core = extract_model_from_parallel(model, keep_torch_compile=False)
        head = core.get_output_embeddings()
        learns = head is not None and any(parameter.requires_grad for parameter in head.parameters())
        max_logits = self.max_logits if learns else self.max_logits // 2
        return max(1, max_logits // core.config.get_text_config().vocab_size)


@dataclass(frozen=True, slots=True)
class SequenceScorer:
    """Scores whole sequences by the value head at their last token; no logits are computed."""

    def __call__(self, model: nn.Module, batch: Batch) -> Scores:
        """Run the model on a batch; gradients flow to `values` and `aux_loss`. Raises ModelError."""
        core = extract_model_from_parallel(model, keep_torch_compile=False)
        index = batch["last_index"] if "last_index" in batch else last_positions(batch)
        values, output = sequence_values(model, model_inputs(batch), index, core)
        none, no_ids = values.new_empty(0), torch.empty(0, dtype=torch.long, device=values.device)
        return Scores(none, no_ids, no_ids, none, aux_loss=aux_loss(core, output), values=values)


@torch.no_grad()
def _logits(reference: Projection, place: slice) -> Tensor:
    if reference.whole is not None:
        return reference.whole[place].float()
    return reference.logits(reference.hidden[place])
