"""What GaLore and APOLLO share: which matrices are projected, and between which spaces.

A matrix G [m, n] is seen as R = L^T G ("left", R [r, n]), R = G Q ("right", R [m, r]) or R = L^T G Q ("full", R [r,
r]), with L [m, r] and Q [n, r]. Leading dimensions (fused experts) are batches of matrices. Knows no update rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llamafactory.config.run import RunConfig
from llamafactory.config.violation import value_of
from llamafactory.errors import ConfigError
from llamafactory.optim._update import Group, State, decay_groups, trained, wide

ALL = {"all", "all-linear", "all_linear"}


def project(gradient: Tensor, state: State) -> Tensor:
    """R of a gradient, by the bases in `state`."""
    low = state["left"].mT @ gradient if "left" in state else gradient
    return low @ state["right"] if "right" in state else low


def expand(low: Tensor, state: State) -> Tensor:
    """Back to the shape of the gradient: L R, R Q^T or L R Q^T."""
    full = state["left"] @ low if "left" in state else low
    return full @ state["right"].mT if "right" in state else full


def sides(shape: torch.Size, proj_type: str) -> tuple[str, ...]:
    """The bases a projection needs. `std` keeps the longer side whole, `reverse_std` the shorter one."""
    tall = shape[-2] >= shape[-1]
    return {
        "std": ("right",) if tall else ("left",),
        "reverse_std": ("left",) if tall else ("right",),
        "left": ("left",),
        "right": ("right",),
        "full": ("left", "right"),
    }[proj_type]


def singular_bases(gradient: Tensor, rank: int, wanted: Iterable[str]) -> dict[str, Tensor]:
    """The first `rank` singular vectors of a gradient, as columns."""
    u, _, vh = torch.linalg.svd(wide(gradient), full_matrices=False)
    bases = {"left": u[..., :rank], "right": vh[..., :rank, :].mT}
    return {side: bases[side].to(gradient.dtype).clone(memory_format=torch.contiguous_format) for side in wanted}


def random_bases(gradient: Tensor, rank: int, wanted: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Columns with entries from N(0, 1/rank), so that E[L L^T] = 1; the same on every device."""
    sizes = {"left": gradient.shape[-2], "right": gradient.shape[-1]}
    found = {}
    for number, side in enumerate(wanted):
        generator = torch.Generator().manual_seed(seed + number)
        shape = (*gradient.shape[:-2], sizes[side], min(rank, sizes[side]))
        found[side] = (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(gradient)
    return found


@dataclass(frozen=True)
class Projection:
    """Which matrices are projected, how, and whether weights are updated within the backward pass."""

    key: str
    targets: tuple[str, ...]
    rank: int
    interval: int
    scale: float
    proj_type: str
    layerwise: bool


def low_rank_groups(
    model: nn.Module, projection: Projection, weight_decay: float, options: Mapping[str, object]
) -> list[Group]:
    """Parameter groups: the projected matrices with rank, interval, scale and proj_type, all else without.

    options: for both. Raises ConfigError.
    """
    chosen = target_matrices(model, projection.targets, projection.key)
    wanted = {id(parameter) for parameter in chosen}
    others = [parameter for parameter in trained(model).values() if id(parameter) not in wanted]
    low = {name: getattr(projection, name) for name in ("rank", "interval", "scale", "proj_type")}
    return decay_groups(chosen, weight_decay, {**options, **low}) + decay_groups(others, weight_decay, options)


def target_matrices(model: nn.Module, targets: tuple[str, ...], key: str) -> list[nn.Parameter]:
    """The trained matrices of linear layers and fused experts whose name holds, or matches, a target.

    `all` means every one but the output embedding. Raises ConfigError for a target that matches nothing.
    """
    matrices = dict(_matrices(model))
    found: dict[str, nn.Parameter] = {}
    for target in targets:
        hit = {name: value for name, value in matrices.items() if target in ALL or _matches(target, name)}
        if not hit:
            raise ConfigError(
                f"{key}: {target!r} matches no trained matrix of {type(model).__name__}; use all, or parts of names "
                f"such as {', '.join(dict.fromkeys(name.split('.')[-2] for name in list(matrices)[:8])) or '(none)'}"
            )
        found |= hit
    return list(found.values())


def _matrices(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    excluded = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    linear = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear) and module.weight.ndim == 2
    }
    for name, parameter in trained(model).items():
        fused = parameter.ndim == 3 and "experts" in name
        if (id(parameter) in linear or fused) and id(parameter) not in excluded:
            yield name, parameter


def _matches(target: str, name: str) -> bool:
    module = name.removesuffix(".weight")
    return target in module or re.fullmatch(target, module) is not None


def named_projection(config: RunConfig, *, scale: float, further: Mapping[str, tuple[str, ...]]) -> Projection:
    """The projection of a transformers name such as galore_adamw: its own defaults, `optim_args` above them.

    further: other arguments that are allowed, and their values. Raises ConfigError.
    """
    given = optim_arguments(config, {"rank": (), "update_proj_gap": (), "scale": (), **further})
    return Projection(
        key="optim_target_modules",
        targets=_optim_targets(config),
        rank=int(given.get("rank", 128)),
        interval=int(given.get("update_proj_gap", 200)),
        scale=float(given.get("scale", scale)),
        proj_type=given.get("proj_type", "std"),
        layerwise=config.training.optim.endswith("_layerwise"),
    )


def optim_arguments(config: RunConfig, allowed: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """`optim_args` (a=1,b=2) as a mapping. allowed: names and their values (none: a positive number).

    Raises ConfigError.
    """
    found = {}
    for item in filter(None, (config.training.optim_args or "").replace(" ", "").split(",")):
        name, _, value = item.partition("=")
        if not (value in allowed[name] if allowed.get(name) else name in allowed and _is_positive(value)):
            words = [f"{key} ({' | '.join(values) or 'a number above 0'})" for key, values in allowed.items()]
            raise ConfigError(
                f"{config.place('optim_args')}: optim_args: {item!r} is not understood by optim: "
                f"{config.training.optim}; write name=value with one of: {', '.join(words)}"
            )
        found[name] = value
    return found


def _is_positive(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?([eE]-?\d+)?", text) is not None and float(text) > 0


def _optim_targets(config: RunConfig) -> tuple[str, ...]:
    """`optim_target_modules`; every linear layer when left out."""
    given = value_of(config, "optim_target_modules")
    if given is None:
        return ("all",)
    return (given,) if isinstance(given, str) else tuple(str(item) for item in cast("list[object]", given))
