"""Scores from a reward adapter on the policy's own base: no second model in memory.

For scoring, the policy's adapter and value head are exchanged for those of the reward model, and put back afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError, ModelError
from llamafactory.logs import get_logger
from llamafactory.models.hub import fetch
from llamafactory.models.reward import score_sequences
from llamafactory.models.start import has_start
from llamafactory.models.value_head import (
    VALUE_HEAD_FILE,
    StoredHead,
    ValueHead,
    attach_value_head,
    detached,
    exchanged,
    read_value_head,
)
from llamafactory.training.reference import Autocast
from llamafactory.training.rewards import Reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = get_logger(__name__)

ADAPTER = "reward"


def check(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError or ModelError unless the reward adapter is complete."""
    _folder_and_head(config)


def build(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, autocast: Autocast
) -> Reward:
    """Load the reward adapter beside the policy's; only the latter learns."""
    folder, stored = _folder_and_head(config)
    if not isinstance(model, PeftModel):
        raise ConfigError(
            f"{config.place('reward_model_type')}: reward_model_type: lora needs a policy with an adapter; set "
            "finetuning_type: lora, or reward_model_type: full"
        )
    try:
        model.load_adapter(
            str(folder),
            ADAPTER,
            is_trainable=False,
            autocast_adapter_dtype=not config.finetuning.pure_bf16,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"reward_model: {folder} does not fit the policy's base model ({str(error).strip().splitlines()[0]}); give "
            "an adapter trained on the same base, or merge it and set reward_model_type: full"
        ) from error
    with detached(model):
        head = attach_value_head(model, stored, trainable=False)
    logger.info("reward adapter: %s", folder)
    size = config.training.per_device_train_batch_size
    return AdapterReward(model, head, tokenizer.pad_token_id or 0, size, autocast)


def _folder_and_head(config: RunConfig) -> tuple[Path, StoredHead]:
    place, name = config.place("reward_model"), config.ppo.reward_model
    folder = fetch(str(name), config.hub, key="reward_model")
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{place}: reward_model: {name!r} holds no adapter_config.json, and reward_model_type: lora needs an "
            "adapter; set reward_model_type: full for a whole model"
        )
    if has_start(folder) or _changes_base(folder):
        raise ConfigError(
            f"{place}: reward_model: {name!r} was trained on a changed base (a start such as PiSSA), which the policy "
            "does not have; train it with pissa_convert: true, or export it and set reward_model_type: full"
        )
    stored = read_value_head(folder, allow_pickle=config.hub.allow_pickle_weights)
    if stored is None:
        raise ModelError(
            f"{place}: reward_model: {name!r} has no {VALUE_HEAD_FILE}, so it cannot score; give an adapter trained "
            "with stage: rm"
        )
    return folder, stored


def _changes_base(folder: Path) -> bool:
    """True for the starts of PEFT that subtract the first values of the adapter from the base while loading it."""
    content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    start = content.get("init_lora_weights", True)
    return isinstance(start, str) and start.lower() not in {"gaussian", "orthogonal", "eva"}


@dataclass(frozen=True)
class AdapterReward:
    """Scores by the reward adapter and head on the policy's base. batch_size: sequences of one forward pass."""

    model: PeftModel
    head: ValueHead
    pad_token_id: int
    batch_size: int
    autocast: Autocast

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        with self.autocast(), exchanged(self.model, self.head), _adapter_on(self.model, ADAPTER):
            return score_sequences(self.model, sequences, pad_token_id=self.pad_token_id, batch_size=self.batch_size)


@contextmanager
def _adapter_on(model: PeftModel, name: str) -> Iterator[None]:
    """The model with another adapter active; what learns is the same afterwards."""
    before, learns = model.active_adapter, [parameter.requires_grad for parameter in model.parameters()]
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before)
        for parameter, flag in zip(model.parameters(), learns, strict=True):
            parameter.requires_grad_(flag)
