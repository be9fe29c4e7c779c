"""Reinforcement learning with PPO. Knows no model class."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, NonNegativeReal, Positive, PositiveReal, Section, option


class PpoConfig(Section):
    """PPO and its reward model."""

    title: ClassVar[str] = "PPO"

    ppo_buffer_size: Positive = option(
        1, "Updates whose prompts are answered together, as one round of experience.", unit="updates"
    )
    ppo_epochs: Positive = option(4, "Times every round of experience is learned from.", unit="epochs")
    ppo_score_norm: bool = option(False, "Bring the scores to mean 0 and variance 1, over all rounds so far.")
    ppo_kl_coef: NonNegativeReal = option(0.2, "Weight of the divergence from the reference, at the start.")
    ppo_adaptive_kl: bool = option(True, "Adapt that weight so that the divergence comes near ppo_target.")
    ppo_target: PositiveReal = option(6.0, "Wished divergence of an answer from the reference.", unit="nats")
    ppo_whiten_rewards: bool = option(False, "Bring the rewards of all tokens of a round to variance 1.")
    reward_model: str | None = option(None, "Reward model: a folder, a hub name, an adapter, or the URL of a server.")
    reward_model_adapters: CommaList = option((), "Adapters of the reward model, separated by commas.")
    reward_model_quantization_bit: Literal[4, 8] | None = option(None, "Quantization of the reward model.", unit="bits")
    reward_model_type: Literal["lora", "full", "api"] = option(
        "lora", "Kind of reward model: an adapter on the policy, a model of its own, or a server."
    )
    reward_model_timeout_seconds: PositiveReal = option(
        60.0, "Longest wait for an answer of a reward server.", unit="seconds"
    )
