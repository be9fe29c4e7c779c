"""APOLLO: full gradients, scaled as Adam would in a random low-rank space, https://arxiv.org/abs/2412.05270.

Algorithm 1 for a matrix W [m, n] with gradient G, projected to R = L^T G, L [m, r] with entries from N(0, 1/r) drawn
anew every apollo_update_interval steps (`_low_rank` has the other sides; `apollo_proj: svd` takes singular vectors
instead):

    N = Adam(R)
    s = |N[:, j]| / |R[:, j]| for each column j (channel), or |N| / |R| (tensor)
    U = sqrt(apollo_scale) * G * s, and |U| grows by at most 1 % in a step (norm-growth limiter)
    W <- W - lr * U

The paper's alpha is sqrt(apollo_scale): APOLLO-Mini has rank 1, tensor scaling and apollo_scale 128. The limiter
compares norms of neighbouring steps, so scaling before it (`apollo_scale_front`) or after it gives the same update.
For one matrix the state holds 2 r n + r m numbers instead of Adam's 2 m n.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import ADAMW_ONLY, FULL_WEIGHTS, WHOLE_WEIGHTS, Facts, updates_in_backward
from llamafactory.optim._low_rank import (
    Projection,
    low_rank_groups,
    named_projection,
    optim_arguments,
    project,
    random_bases,
    sides,
    singular_bases,
)
from llamafactory.optim._rules import adam
from llamafactory.optim._update import Group, State, TensorwiseOptimizer, adam_defaults, wide

FACTS = Facts(
    "APOLLO",
    chosen_by=(("use_apollo", (True,)), ("optim", ("apollo_adamw", "apollo_adamw_layerwise"))),
    clashes=(
        FULL_WEIGHTS,
        *WHOLE_WEIGHTS,
        ADAMW_ONLY,
        *updates_in_backward((("apollo_layerwise", (True,)), ("optim", ("apollo_adamw_layerwise",)))),
    ),
)

MAX_GROWTH = 1.01
_ARGUMENTS = {"proj": ("random", "svd"), "scale_type": ("channel", "tensor"), "proj_type": ("std", "left", "right")}


class Apollo(TensorwiseOptimizer):
    """The update above. Groups of projected matrices hold the fields of `Projection`, proj, scale_type, scale_front."""

    def __init__(self, groups: list[Group], defaults: Group, seed: int) -> None:
        super().__init__(groups, defaults)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        # Seeds two matrices apart leave room for the two sides; the renewals of one matrix are far apart.
        self._seeds = {id(parameter): seed + 2 * number for number, parameter in enumerate(parameters)}

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """U for projected matrices, Adam's direction for the rest."""
        if "rank" not in group:
            return adam(gradient, state, group)
        if state.get("step", 0) % group["interval"] == 0:
            state.update(self._bases(gradient, parameter, state, group))
        low = wide(project(gradient, state))
        shape = None if group["scale_type"] == "tensor" else (-1 if "right" in state else -2)
        scaled = gradient * _ratio(adam(low, state, group), low, shape).to(gradient.dtype)
        factor = group["scale"] ** 0.5
        if group["scale_front"]:
            return _limit_growth(scaled * factor, state)
        return _limit_growth(scaled, state) * factor

    def _bases(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> dict[str, Tensor]:
        wanted = sides(gradient.shape, group["proj_type"])
        if group["proj"] == "svd":
            return singular_bases(gradient, group["rank"], wanted)
        seed = (self._seeds[id(parameter)] + 1_000_003 * state.get("step", 0)) % 2**63
        return random_bases(gradient, group["rank"], wanted, seed)


def _ratio(after: Tensor, before: Tensor, dim: int | None) -> Tensor:
    """|after| / |before| along one dimension, kept with size 1, or over all (None)."""
    if dim is None:
        return torch.linalg.vector_norm(after) / (torch.linalg.vector_norm(before) + 1e-8)
    norms = [torch.linalg.vector_norm(tensor, dim=dim, keepdim=True) for tensor in (after, before)]
    return norms[0] / (norms[1] + 1e-8)


def _limit_growth(update: Tensor, state: State) -> Tensor:
    norm = torch.linalg.vector_norm(wide(update))
    if "norm" in state:
        limit = MAX_GROWTH * state["norm"]
        factor = torch.where((norm > limit) & (limit > 0), limit / norm, torch.ones_like(norm))
        update, norm = update * factor.to(update.dtype), norm * factor
    state["norm"] = norm
    return update


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """APOLLO by the `apollo_*` options, or by a transformers name with its `optim_args`. Raises ConfigError."""
    projection, options = _by_options(config) if config.apollo.use_apollo else _by_name(config)
    groups = low_rank_groups(model, projection, args.weight_decay, {})
    for group in groups:
        if "rank" in group:
            group.update(options)
    optimizer = Apollo(groups, adam_defaults(args), args.seed)
    return optimizer.update_in_backward(args.max_grad_norm) if projection.layerwise else optimizer


def _by_options(config: RunConfig) -> tuple[Projection, Group]:
    options = config.apollo
    projection = Projection(
        key="apollo_target",
        targets=options.apollo_target,
        rank=options.apollo_rank,
        interval=options.apollo_update_interval,
        scale=options.apollo_scale,
        proj_type=options.apollo_proj_type,
        layerwise=options.apollo_layerwise,
    )
    return projection, {
        "proj": options.apollo_proj,
        "scale_type": options.apollo_scale_type,
        "scale_front": options.apollo_scale_front,
    }


def _by_name(config: RunConfig) -> tuple[Projection, Group]:
    projection = named_projection(config, scale=1.0, further=_ARGUMENTS)
    given = optim_arguments(config, {"rank": (), "update_proj_gap": (), "scale": (), **_ARGUMENTS})
    return projection, {
        "proj": given.get("proj", "random"),
        "scale_type": given.get("scale_type", "channel"),
        "scale_front": False,
    }
