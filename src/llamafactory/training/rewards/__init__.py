"""Where the scores of sampled answers come from. One file per `reward_model_type`.

Every file defines `check(config, tokenizer)`, which raises what can be known before any model is loaded, and
`build(config, model, tokenizer, autocast) -> Reward`. model: the policy, unwrapped. autocast: context of number formats
in which models compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llamafactory.parts import Family

REWARDS = Family(key="reward_model_type", package="llamafactory.training.rewards", exports=("check", "build"))


class Reward(Protocol):
    """Scores answers."""

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One finite score for each sequence of token ids: a prompt with its answer and stop token, no padding."""
        ...
