"""Gives a trainer what an on-policy stage needs: a sampler, a reward and the arithmetic between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from llamafactory.config.run import RunConfig
from llamafactory.objectives.ppo import BeforeUpdate
from llamafactory.training.answers import AnswerSampler
from llamafactory.training.kl_control import KlControl
from llamafactory.training.reference import Autocast, autocast_of, build_reference
from llamafactory.training.rewards import REWARDS, Reward
from llamafactory.training.rollout import Returns, Rollout, RoundPlan
from llamafactory.training.rollout_log import RolloutLog
from llamafactory.training.running_moments import RunningMoments
from llamafactory.training.scoring import TokenScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.training.trainer import Trainer


def check_reward(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError or ModelError for a reward model that cannot score this policy, before anything is loaded."""
    REWARDS.load(config.ppo.reward_model_type).check(config, tokenizer)


def add_rollouts(
    trainer: Trainer,
    config: RunConfig,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    reference: PreTrainedModel | None = None,
    reward: Reward | None = None,
) -> None:
    """Make `trainer` (in place) answer its prompts before it learns from them. Call it before training begins.

    stop_ids: tokens that end an answer. reference: a model to compare with; left out, the policy as it is now. reward:
    left out, the reward model of the configuration is loaded.
    """
    args, model = trainer.args, trainer.model
    autocast = autocast_of(args)
    if reward is None:
        reward = _load_reward(config, trainer, tokenizer, autocast)
    ends = dict.fromkeys((*stop_ids, tokenizer.eos_token_id))
    trainer.preparation = Rollout(
        RoundPlan(
            num_updates=config.ppo.ppo_buffer_size,
            num_passes=config.ppo.ppo_epochs,
            batches_per_update=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            seed=args.seed,
        ),
        sampler=AnswerSampler(
            options=config.generation,
            stop_ids=tuple(token for token in ends if token is not None),
            pad_token_id=tokenizer.pad_token_id or 0,
            autocast=autocast,
        ),
        scorer=TokenScorer(BeforeUpdate(), build_reference(model, reference, args)),
        reward=reward,
        kl_control=KlControl(config.ppo.ppo_kl_coef, config.ppo.ppo_target if config.ppo.ppo_adaptive_kl else None),
        returns=Returns(whiten_rewards=config.ppo.ppo_whiten_rewards),
        norm=RunningMoments() if config.ppo.ppo_score_norm else None,
        log=RolloutLog(Path(str(args.output_dir)) if trainer.is_world_process_zero() else None, tokenizer),
    )


def _load_reward(config: RunConfig, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, autocast: Autocast) -> Reward:
    part = REWARDS.load(config.ppo.reward_model_type)
    built: Reward = part.build(config, trainer.model, tokenizer, autocast)
    return built
