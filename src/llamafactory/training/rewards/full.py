"""Scores from a reward model of its own: a model trained with `stage: rm`, frozen, on the policy's device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.vocab import VocabConfig
from llamafactory.errors import ConfigError, ModelError
from llamafactory.logs import get_logger
from llamafactory.models.hub import fetch
from llamafactory.models.load import find_value_head, load_model
from llamafactory.models.quantization import place
from llamafactory.models.reward import score_sequences
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.models.value_head import VALUE_HEAD_FILE
from llamafactory.training.reference import Autocast
from llamafactory.training.rewards import Reward

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = get_logger(__name__)


def check(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError or ModelError unless the reward model is complete and shares the policy's tokenizer."""
    place, name = config.place("reward_model"), config.ppo.reward_model
    folder = fetch(str(name), config.hub, key="reward_model")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{place}: reward_model: {name!r} is an adapter, and reward_model_type: full needs a whole model; give "
            "its base as reward_model and the adapter as reward_model_adapters, or set reward_model_type: lora"
        )
    other = reward_config(config)
    if find_value_head(other, folder) is None:
        raise ModelError(
            f"{place}: reward_model: {name!r} has no {VALUE_HEAD_FILE}, neither with its last adapter nor with the "
            "base, so it cannot score; give a model trained with stage: rm"
        )
    if load_tokenizer(other).tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{place}: reward_model: {name!r} has another tokenizer than the policy, so it would read other words in "
            "the same tokens; give a reward model of the same family, or serve it and set reward_model_type: api"
        )


def build(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, autocast: Autocast
) -> Reward:
    """Load the reward model next to the policy."""
    other = reward_config(config)
    loaded = load_model(other, load_tokenizer(other), trainable=False, head="value").model
    logger.info("reward model: %s", config.ppo.reward_model)
    size = config.training.per_device_train_batch_size
    return ModelReward(place(loaded, model.device), tokenizer.pad_token_id or 0, size, autocast)


def reward_config(config: RunConfig) -> RunConfig:
    """The configuration that loads the reward model with its adapters merged, as it was trained."""
    ppo = config.ppo
    named = {
        "model_name_or_path": ppo.reward_model,
        "adapter_name_or_path": ppo.reward_model_adapters,
        "adapter_folder": None,
        "train_from_scratch": False,
        "rope_scaling": None,  # its own positions: those of its folder, or as its adapter remembers them
    }
    bits = config.quantization.model_copy(update={"quantization_bit": ppo.reward_model_quantization_bit})
    method = config.finetuning.model_copy(update={"finetuning_type": "lora"})
    model = config.model.model_copy(update=named)
    return dataclasses.replace(config, model=model, finetuning=method, quantization=bits, vocab=VocabConfig())


@dataclass(frozen=True)
class ModelReward:
    """Scores by a model with a value head. batch_size: sequences of one forward pass."""

    model: PreTrainedModel | PeftModel
    pad_token_id: int
    batch_size: int
    autocast: Autocast

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        with self.autocast():
            return score_sequences(self.model, sequences, pad_token_id=self.pad_token_id, batch_size=self.batch_size)
