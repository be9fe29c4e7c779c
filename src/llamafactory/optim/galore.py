"""GaLore: Adam (or 8-bit Adam, or Adafactor) on gradients projected to a low rank, https://arxiv.org/abs/2403.03507.

Algorithm 2 for a matrix W [m, n] with gradient G, projected to R = L^T G (or R = G Q, see `_low_rank`):

    every galore_update_interval steps: L = the first galore_rank left singular vectors of G
    N = rule(R);  W <- W - lr * galore_scale * L N

The paper writes W + lr * alpha * L N for the negative gradient: the same step. The moments carry on when L changes,
as in the paper. Everything that is not projected follows the plain rule. For one matrix the state holds 2 r n + r m
numbers instead of Adam's 2 m n.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import FULL_WEIGHTS, WHOLE_WEIGHTS, Clash, Facts, updates_in_backward
from llamafactory.optim._low_rank import (
    Projection,
    expand,
    low_rank_groups,
    named_projection,
    project,
    sides,
    singular_bases,
)
from llamafactory.optim._rules import RULES
from llamafactory.optim._update import Group, State, TensorwiseOptimizer, adam_defaults, wide

IN_STEP_NAMES = ("galore_adamw", "galore_adamw_8bit", "galore_adafactor")
LAYERWISE_NAMES = ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise")
PROJECTED = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor")
FACTS = Facts(
    "GaLore",
    chosen_by=(("use_galore", (True,)), ("optim", (*IN_STEP_NAMES, *LAYERWISE_NAMES))),
    clashes=(
        FULL_WEIGHTS,
        *WHOLE_WEIGHTS,
        Clash(
            "optim",
            "GaLore projects the gradients of AdamW, 8-bit AdamW and Adafactor",
            "remove optim, or set it to adamw_torch, adamw_8bit or adafactor",
            allowed=PROJECTED,
        ),
        *updates_in_backward((("galore_layerwise", (True,)), ("optim", LAYERWISE_NAMES))),
    ),
)

_PROJ_TYPES = ("std", "reverse_std", "left", "right", "full")


class GaLore(TensorwiseOptimizer):
    """The update above. Groups: `rule`, a name of `RULES`; of projected matrices also the fields of `Projection`."""

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """galore_scale * L N for projected matrices, N for the rest."""
        rule = RULES[group["rule"]]
        if "rank" not in group:
            return rule(gradient, state, group)
        if state.get("step", 0) % group["interval"] == 0:
            state.update(singular_bases(gradient, group["rank"], sides(gradient.shape, group["proj_type"])))
        return expand(rule(wide(project(gradient, state)), state, group).to(gradient.dtype), state) * group["scale"]


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """GaLore by the `galore_*` options, or by a transformers name with its `optim_args`. Raises ConfigError."""
    projection = _projection(config)
    groups = low_rank_groups(model, projection, args.weight_decay, {"rule": _rule(config.training.optim)})
    optimizer = GaLore(groups, adam_defaults(args))
    return optimizer.update_in_backward(args.max_grad_norm) if projection.layerwise else optimizer


def _projection(config: RunConfig) -> Projection:
    options = config.galore
    if not options.use_galore:
        return named_projection(config, scale=0.25, further={"proj_type": _PROJ_TYPES})
    return Projection(
        key="galore_target",
        targets=options.galore_target,
        rank=options.galore_rank,
        interval=options.galore_update_interval,
        scale=options.galore_scale,
        proj_type=options.galore_proj_type,
        layerwise=options.galore_layerwise,
    )


def _rule(optim: str) -> str:
    if "8bit" in optim:
        return "adam_8bit"
    return "adafactor" if "adafactor" in optim else "adam"
