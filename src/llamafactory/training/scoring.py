"""Log-probabilities of the supervised tokens of a batch, without the logits of the others.

A forward pre-hook on the output embedding keeps the hidden states that predict a supervised token, so the vocabulary
projection, the soft-max and their gradients run on those N positions alone. The model's own forward runs unchanged:
logit soft-capping and scaling, PEFT and DDP wrappers, router losses keep working. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llamafactory.errors import ModelError
from llamafactory.logs import notice
from llamafactory.objectives import Batch, Objective, Scores, supervised
from llamafactory.training.reference import ReferencePolicy

MAX_LOGITS = 2**25
"""Logits held at once (128 MiB in fp32). More are scored in chunks, which the backward pass computes again."""

NOT_MODEL_INPUTS = frozenset({"labels", "weights", "reference_logps", "length", "source"})
"""Columns of a batch that are for objectives or reports, not for the model."""

Finish = Callable[[Tensor], Tensor]


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
    """Where a batch is supervised, in both layouts: padded rows, and rows of packed segments with position ids."""
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


@dataclass(frozen=True, slots=True)
class _Projection:
    """Hidden states [N, H] of one forward, the logits [n, V] of the first n, and how to get the others."""

    hidden: Tensor
    first: Tensor
    head: nn.Module
    finish: Finish
    autocast: Callable[[], AbstractContextManager[object]]
    switch: Callable[[], AbstractContextManager[object]]
    aux_loss: Tensor | None

    def logits(self, start: int, stop: int) -> Tensor:
        """[stop - start, V] fp32."""
        if stop <= self.first.shape[0]:
            return self.first[start:stop].float()
        with self.autocast(), self.switch():
            return self.finish(self.head(self.hidden[None, start:stop]))[0].float()


@dataclass
class _Hooked:
    """What the hooks on the output embedding saw during one forward."""

    head: nn.Module
    index: Tensor
    limit: int
    hidden: Tensor | None = None
    raw: Tensor | None = None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def narrow(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        self.hidden = states.reshape(-1, states.shape[-1]).index_select(0, self.index)
        device = states.device.type
        if torch.is_autocast_enabled(device):
            self.autocast = partial(torch.autocast, device, dtype=torch.get_autocast_dtype(device))
        return (self.hidden[None, : self.limit], *args[1:])

    def record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.raw = output.detach()

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [self.head.register_forward_pre_hook(self.narrow), self.head.register_forward_hook(self.record)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class TokenScorer:
    """Scores the supervised tokens of a batch for an objective, chunk by chunk when there are many.

    max_logits: see MAX_LOGITS. reference: needed when the objective says so.
    """

    objective: Objective
    reference: ReferencePolicy | None = None
    max_logits: int = MAX_LOGITS
    _chunkable: bool = field(default=True, init=False)

    def __call__(self, model: nn.Module, batch: Batch) -> Scores:
        """Run the model on a batch; gradients flow to `logps`, `stats` and `aux_loss`. Raises ModelError."""
        kept = kept_positions(batch)
        reference = self._reference(batch, kept) if self.objective.needs_reference else None
        policy = self._project(model, batch, kept, switch=nullcontext)
        parts = [self._chunk(policy, reference, kept.targets, bounds) for bounds in self._bounds(kept, policy)]
        logps, reference_logps, stats = zip(*parts, strict=True)
        return Scores(
            logps=torch.cat(logps),
            targets=kept.targets,
            rows=kept.rows,
            weights=kept.weights,
            stats={name: torch.cat([part[name] for part in stats]) for name in stats[0]},
            reference_logps=None if reference is None else torch.cat(reference_logps),
            aux_loss=policy.aux_loss,
        )

    def _bounds(self, kept: Kept, policy: _Projection) -> list[tuple[int, int]]:
        num_tokens, size = kept.targets.numel(), max(1, policy.first.shape[0])
        return [(start, min(start + size, num_tokens)) for start in range(0, max(1, num_tokens), size)]

    def _chunk(
        self, policy: _Projection, reference: _Projection | None, targets: Tensor, bounds: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Score tokens [start, stop); all but the model's own first logits are recomputed in the backward pass."""

        def score() -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
            logits, wanted = policy.logits(*bounds), targets[slice(*bounds)]
            other = None if reference is None else reference.logits(*bounds)
            stats = self.objective.token_stats(logits, wanted, other)
            return token_logps(logits, wanted), None if other is None else token_logps(other, wanted), stats

        if bounds[0] == 0 or not torch.is_grad_enabled():
            return score()
        return checkpoint(score, use_reentrant=False)

    @torch.no_grad()
    def _reference(self, batch: Batch, kept: Kept) -> _Projection:
        if self.reference is None:
            raise ValueError("the objective needs a reference policy, but the trainer was given none")
        with self.reference.active() as model:
            head = extract_model_from_parallel(model).get_output_embeddings()
            return self._project(model, batch, kept, switch=partial(self.reference.active, head))

    def _project(
        self, model: nn.Module, batch: Batch, kept: Kept, *, switch: Callable[[], AbstractContextManager[object]]
    ) -> _Projection:
        core = extract_model_from_parallel(model, keep_torch_compile=False)
        head = core.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(core).__name__} has no output embedding, so it cannot be trained as a language model"
            )
        num_tokens, vocab_size = kept.targets.numel(), core.config.get_text_config().vocab_size
        limit = max(1, self.max_logits // vocab_size) if self._chunkable else max(1, num_tokens)
        hooked = _Hooked(head, kept.index, limit)
        inputs = {name: value for name, value in batch.items() if name not in NOT_MODEL_INPUTS}
        with hooked.attached():
            output = model(**inputs, use_cache=False, return_dict=True)
        if hooked.hidden is None or hooked.raw is None or output.logits.shape[1] != min(limit, num_tokens):
            raise ModelError(
                f"{type(core).__name__} does not pass its hidden states through its output embedding, "
                "so its supervised tokens cannot be scored"
            )
        finish: Finish | None = _identity
        if num_tokens > limit:
            finish = _find_finish(hooked.raw, output.logits, core.config.get_text_config())
        if finish is None:
            notice(
                f"{type(core).__name__} changes its logits in a way of its own: large batches are scored in one piece"
            )
            self._chunkable = False
            return self._project(model, batch, kept, switch=switch)
        return _Projection(
            hooked.hidden, output.logits[0], head, finish, hooked.autocast, switch, _aux_loss(core, output)
        )


def _identity(logits: Tensor) -> Tensor:
    return logits


def _find_finish(raw: Tensor, final: Tensor, config: Any) -> Finish | None:
    """What a model does to its logits after the output embedding: the candidate that turns `raw` into `final`."""
    candidates: list[Finish] = [_identity]
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        candidates.append(lambda logits: torch.tanh(logits / cap) * cap)
    for name in ("logits_scaling", "logit_scale", "lm_head_multiplier"):
        factor = getattr(config, name, None)
        if factor:
            candidates += [partial(torch.mul, other=factor), partial(torch.div, other=factor)]
    probe, wanted = raw[:, :8], final[:, :8].detach().float()
    fitting = (finish for finish in candidates if torch.allclose(finish(probe).float(), wanted, rtol=1e-5, atol=1e-6))
    return next(fitting, None)


def _aux_loss(core: Any, output: Any) -> Tensor | None:
    """The router loss of a mixture-of-experts model, times its coefficient; None for other models."""
    loss = getattr(output, "aux_loss", None)
    if loss is None:
        return None
    coefficient = getattr(core, "router_aux_loss_coef", None)
    if coefficient is None:
        coefficient = getattr(core.config.get_text_config(), "router_aux_loss_coef", 0.0)
    return loss * coefficient
