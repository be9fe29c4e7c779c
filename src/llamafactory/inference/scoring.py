"""Scores from a reward model: whole conversations in, one number each out.

Knows the model, its tokenizer and renderer; no server and no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafactory.config import RunConfig, refuse_unavailable
from llamafactory.errors import DataError
from llamafactory.inference.artefact import complete
from llamafactory.inference.loading import load_renderer
from llamafactory.models.load import load_model
from llamafactory.models.reward import score_sequences
from llamafactory.rendering.records import Conversation, Feedback
from llamafactory.rendering.renderer import Renderer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_reward_model(config: RunConfig, *, batch_size: int = 8) -> RewardModel:
    """Load the reward model that `model_name_or_path` and `adapter_name_or_path` name; the folder of a run is enough.

    Raises ModelError when it has no value head.
    """
    config = complete(config)
    refuse_unavailable(config, config.command)
    bundle, renderer = load_renderer(config)
    loaded = load_model(config, bundle, trainable=False, head="value")
    pad = bundle.tokenizer.pad_token_id or 0
    return RewardModel(loaded.model, renderer, pad_token_id=pad, batch_size=batch_size)


@dataclass(frozen=True)
class RewardModel:
    """A model with a value head, ready to score. batch_size: most sequences of one forward pass."""

    model: PreTrainedModel | PeftModel
    renderer: Renderer
    pad_token_id: int
    batch_size: int = 8

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """One score for each conversation that ends with an answer, as training scored it.

        Raises DataError for a conversation without an answer, ModelError for one longer than the model's positions.
        """
        for number, conversation in enumerate(conversations, start=1):
            if not conversation.messages or conversation.messages[-1].role not in ("assistant", "function"):
                raise DataError(
                    f"conversation {number}: the last message must be the assistant's, because a reward model scores "
                    "answers; add the answer to score"
                )
        turns = self.renderer.encode([Feedback(conversation, desirable=True) for conversation in conversations])
        return self.score_ids(
            [[token for piece in (*turn.source, *turn.target) for token in piece.ids] for (turn,) in turns]
        )

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One score for each sequence of token ids, in order; sequences of like length share a batch."""
        if any(not sequence for sequence in sequences):
            raise DataError("a sequence to score has no tokens; give at least one")
        return score_sequences(self.model, sequences, pad_token_id=self.pad_token_id, batch_size=self.batch_size)
