"""One forward of a model with its output embedding run on chosen positions alone.

A forward pre-hook on the output embedding keeps the hidden states of those positions. The model's own forward runs
unchanged: logit soft-capping and scaling, PEFT and DDP wrappers, router losses keep working. When the logits would be
too many, the model computes a few, and the others are computed chunk by chunk in the same way. Knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from llamafactory.errors import ModelError
from llamafactory.models.value_head import required_value_head

PROBE_TOKENS = 8
"""Tokens whose logits the model itself computes when the others come in chunks, to see what it does after its head."""

Finish = Callable[[Tensor], Tensor]
Context = Callable[[], AbstractContextManager[object]]


class UnknownLogitsError(Exception):
    """The model changes its logits in a way that chunks cannot repeat."""


@dataclass(frozen=True, slots=True)
class Projection:
    """What one forward left.

    hidden: [N, H] before the head. whole: the logits [N, V], or None when they come in chunks. aux_loss: the router
    loss of a mixture-of-experts model times its coefficient, or None. values: [N] of the value head, or None.
    """

    hidden: Tensor
    whole: Tensor | None
    aux_loss: Tensor | None
    head: nn.Module
    finish: Finish
    autocast: Context
    switch: Context
    values: Tensor | None = None

    @property
    def head_learns(self) -> bool:
        """Whether any weight behind the hidden states is trained."""
        return any(parameter.requires_grad for parameter in self.head.parameters())

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, H] -> [n, V] fp32, as the model would have computed them."""
        with self.autocast(), self.switch():
            return self.finish(self.head(hidden[None]))[0].float()


def project(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    index: Tensor,
    *,
    max_tokens: int,
    switch: Context = nullcontext,
    values: bool = False,
) -> Projection:
    """Run the model; `index` [N] names the kept ones of the flattened positions.

    max_tokens: more kept positions than this come in chunks. switch: context in which the head must be called. values:
    also run the value head on the kept positions, inside the same forward.
    Raises ModelError for a model that cannot be used so, UnknownLogitsError when chunks cannot be computed.
    """
    core = extract_model_from_parallel(model, keep_torch_compile=False)
    head = core.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(core).__name__} has no output embedding, so it cannot be trained as a language model")
    in_chunks = index.numel() > max_tokens
    shown = min(PROBE_TOKENS, index.numel()) if in_chunks else index.numel()
    hooked = _Hooked(head, index, shown, required_value_head(core) if values else None)
    with hooked.attached():
        output = model(**inputs, use_cache=False, return_dict=True)
    if hooked.hidden is None or hooked.raw is None or output.logits.shape[1] != shown:
        raise ModelError(
            f"{type(core).__name__} does not pass its hidden states through its output embedding, "
            "so its supervised tokens cannot be scored"
        )
    finish = _find_finish(hooked.raw, output.logits, core.config.get_text_config()) if in_chunks else _identity
    whole = None if in_chunks else output.logits[0]
    aux = aux_loss(core, output)
    return Projection(hooked.hidden, whole, aux, head, finish, hooked.autocast, switch, hooked.values)


@dataclass
class _Hooked:
    """What the hooks on the output embedding saw during one forward."""

    head: nn.Module
    index: Tensor
    shown: int
    value_head: nn.Module | None = None
    values: Tensor | None = None
    hidden: Tensor | None = None
    raw: Tensor | None = None
    autocast: Context = nullcontext

    def narrow(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        self.hidden = states.reshape(-1, states.shape[-1]).index_select(0, self.index)
        if self.value_head is not None:
            self.values = self.value_head(self.hidden)
        device = states.device.type
        if torch.is_autocast_enabled(device):
            self.autocast = partial(torch.autocast, device, dtype=torch.get_autocast_dtype(device))
        return (self.hidden[None, : self.shown], *args[1:])

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


def _identity(logits: Tensor) -> Tensor:
    return logits


def _find_finish(raw: Tensor, final: Tensor, config: Any) -> Finish:
    """What a model does to its logits after the output embedding: the candidate that turns `raw` into `final`."""
    candidates: list[Finish] = [_identity]
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        candidates.append(lambda logits: torch.tanh(logits / cap) * cap)
    for name in ("logits_scaling", "logit_scale", "lm_head_multiplier"):
        factor = getattr(config, name, None)
        if factor:
            candidates += [partial(torch.mul, other=factor), partial(torch.div, other=factor)]
    wanted = final.detach().float()
    for finish in candidates:
        if torch.allclose(finish(raw).float(), wanted, rtol=1e-5, atol=1e-6):
            return finish
    raise UnknownLogitsError


def aux_loss(core: Any, output: Any) -> Tensor | None:
    """The router loss of a mixture-of-experts model times its coefficient, or None."""
    loss = getattr(output, "aux_loss", None)
    if loss is None:
        return None
    places = (core, core.config.get_text_config())
    found = [getattr(place, name, None) for place in places for name in ("router_aux_loss_coef", "aux_loss_coef")]
    return loss * next((coefficient for coefficient in found if coefficient is not None), 0.0)
