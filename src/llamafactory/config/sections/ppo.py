"""Reinforcement learning with PPO. Knows no model class."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, Positive, PositiveReal, Section, option


class PpoConfig(Section):
    """PPO and its reward model."""

    title: ClassVar[str] = "PPO"

    ppo_buffer_size: Positive = option(1, "Mini-batches in one round of experience.", unit="mini-batches")
    ppo_epochs: Positive = option(4, "Optimization epochs per round of experience.", unit="epochs")
    ppo_score_norm: bool = option(False, "Scale and normalise the rewards.")
    ppo_target: PositiveReal = option(6.0, "Target of the adaptive KL coefficient.", unit="nats")
    ppo_whiten_rewards: bool = option(False, "Bring the rewards to mean 0 and variance 1.")
    reward_model: str | None = option(None, "Reward model: a folder, a hub name, an adapter, or the URL of a server.")
    reward_model_adapters: CommaList = option((), "Adapters of the reward model, separated by commas.")
    reward_model_quantization_bit: Literal[4, 8] | None = option(None, "Quantization of the reward model.", unit="bits")
    reward_model_type: Literal["lora", "full", "api"] = option(
        "lora", "Kind of reward model: an adapter on the policy, a model of its own, or a server."
    )
