"""Adam on one layer at a time, and whose turn it is. Knows no options; see `badam`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamafactory.logs import get_logger
from llamafactory.optim._rules import adam
from llamafactory.optim._update import Group, State, TensorwiseOptimizer, descend, wide

logger = get_logger(__name__)


@dataclass(frozen=True)
class Turns:
    """Whose turn it is after any number of steps, from nothing but these values.

    interval: steps of a turn, None for a single turn without end. mode: ascending, descending, random (each round in an
    order of its own) or fixed. start: the first block, None for the first one of the order.
    """

    interval: int | None
    mode: str
    start: int | None
    seed: int

    def turn(self, num_steps: int) -> int:
        """Number of the turn that the next step belongs to."""
        return 0 if self.interval is None else num_steps // self.interval

    def block(self, turn: int, num_blocks: int) -> int:
        """The block of a turn."""
        if self.mode == "random":
            return self._shuffled(turn, num_blocks)
        direction = {"ascending": 1, "descending": -1, "fixed": 0}[self.mode]
        start = self.start if self.start is not None else (num_blocks - 1 if direction < 0 else 0)
        return (start + direction * turn) % num_blocks

    def _shuffled(self, turn: int, num_blocks: int) -> int:
        round_number, place = divmod(turn, num_blocks)
        generator = torch.Generator().manual_seed(self.seed + round_number)
        order = torch.randperm(num_blocks, generator=generator).tolist()
        if round_number == 0 and self.start is not None:
            order.remove(self.start)
            order.insert(0, self.start)
        return int(order[place])


class BlockwiseAdam(TensorwiseOptimizer):
    """Adam that starts anew with every turn; the number of steps made is kept in the groups, so it is saved with them.

    Weights of 16 bits have a 32-bit copy while they are in turn, so that small steps add up.
    """

    def __init__(self, groups: list[Group], defaults: Group, turns: Turns) -> None:
        super().__init__(groups, {**defaults, "num_steps": 0})
        self.turns = turns

    @property
    def num_steps(self) -> int:
        """Steps made so far."""
        return int(self.param_groups[0]["num_steps"])

    def begin_turn(self, turn: int) -> None:
        """What changes when another block is in turn; also called at the start and after loading."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of the block in turn, then the next turn where it is due."""
        super().step(closure)
        before, now = (self.turns.turn(self.num_steps + more) for more in (0, 1))
        for group in self.param_groups:
            group["num_steps"] += 1
        if now != before:
            self.state.clear()
            self.begin_turn(now)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state, and the block that was in turn."""
        super().load_state_dict(dict(state_dict))
        self.begin_turn(self.turns.turn(self.num_steps))

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """Adam's direction."""
        return adam(gradient, state, group)

    def descend_in_fp32(self, weight: Tensor, gradient: Tensor, parameter: nn.Parameter, group: Group) -> Tensor:
        """The new fp32 value of `weight` (all of the parameter, or some of its entries) after one step."""
        state = self.state[parameter]
        if weight.element_size() < 4 and "copy" not in state:
            state["copy"] = wide(weight)
        copy = state.get("copy", weight)
        descend(copy, self.direction(wide(gradient), parameter, state, group), group)
        return copy


class LayerAdam(BlockwiseAdam):
    """One layer learns, the others are frozen. Every group belongs to the block with the number `block`."""

    def __init__(
        self, groups: list[Group], defaults: Group, turns: Turns, *, num_blocks: int, verbose: int = 0
    ) -> None:
        super().__init__(groups, defaults, turns)
        self._num_blocks, self._verbose = num_blocks, verbose
        self.begin_turn(0)

    def begin_turn(self, turn: int) -> None:
        """Let the block in turn learn, and no other."""
        active = self.turns.block(turn, self._num_blocks)
        count = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["block"] == active)
                parameter.grad = None
                count += parameter.numel() if group["block"] == active else 0
        if self._verbose:
            logger.info("BAdam: block %d of %d learns from now on", active, self._num_blocks)
        if self._verbose > 1:
            logger.info("BAdam: %d weights learn", count)

    def update(self, parameter: nn.Parameter, group: Group) -> None:
        """Update one tensor of the block in turn."""
        assert parameter.grad is not None
        parameter.copy_(self.descend_in_fp32(parameter.data, parameter.grad, parameter, group))
