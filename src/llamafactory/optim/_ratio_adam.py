"""Adam on a share of the entries of every tensor, other ones from turn to turn. Knows no options; see `badam`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamafactory.optim._block_adam import BlockwiseAdam, Turns
from llamafactory.optim._update import Group


class RatioAdam(BlockwiseAdam):
    """share: of the entries of each tensor that learn in a turn. scattered: one of each stretch, or a single stretch.

    Moments exist for these entries alone. Gradients are computed in full.
    """

    def __init__(self, groups: list[Group], defaults: Group, turns: Turns, *, share: float, scattered: bool) -> None:
        super().__init__(groups, defaults, turns)
        self._share, self._scattered = share, scattered
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}

    def begin_turn(self, turn: int) -> None:
        """Entries are drawn when they are needed."""

    def update(self, parameter: nn.Parameter, group: Group) -> None:
        """Update the entries in turn of one tensor."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "entries" not in state:
            state["entries"] = self._draw(parameter)
        entries = state["entries"]
        weights = parameter.data.view(-1)
        new = self.descend_in_fp32(weights[entries], parameter.grad.reshape(-1)[entries], parameter, group)
        weights[entries] = new.to(weights.dtype)

    def _draw(self, parameter: nn.Parameter) -> Tensor:
        """Places of the entries [k] in the flattened tensor, the same for the same tensor and turn."""
        size = parameter.numel()
        count = max(1, round(self._share * size))
        turn = self.turns.turn(self.num_steps)
        generator = torch.Generator().manual_seed(self.turns.seed + self._numbers[id(parameter)] + 1_000_003 * turn)
        if not self._scattered:
            start = int(torch.randint(size, (1,), generator=generator))
            return ((torch.arange(count) + start) % size).to(parameter.device)
        edges = torch.arange(count + 1) * size // count
        places = edges[:-1] + (torch.rand(count, generator=generator) * (edges[1:] - edges[:-1])).long()
        return places.to(parameter.device)
