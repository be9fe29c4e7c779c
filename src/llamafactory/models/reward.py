"""Scores of token sequences by a model with a value head. Knows no text and no stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llamafactory.errors import ModelError
from llamafactory.models.value_head import last_positions, sequence_values


def score_sequences(
    model: nn.Module, sequences: Sequence[Sequence[int]], *, pad_token_id: int, batch_size: int
) -> list[float]:
    """The value at the last token of each sequence, in order; sequences of like length share a batch.

    model: unwrapped, in evaluation mode. batch_size: most sequences of one forward pass. Raises ModelError when a
    sequence is longer than the model's positions.
    """
    _refuse_long(model, sequences)
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        values = _values(model, [sequences[place] for place in places], pad_token_id)
        for place, value in zip(places, values.tolist(), strict=True):
            scores[place] = value
    return scores


@torch.no_grad()
def _values(model: nn.Module, sequences: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return sequence_values(model, inputs, last_positions(inputs))[0]


def _refuse_long(model: nn.Module, sequences: Sequence[Sequence[int]]) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    longest = max(map(len, sequences), default=1)
    if limit is not None and longest > limit:
        raise ModelError(
            f"a conversation has {longest} tokens and the reward model has positions for {limit}; shorten it"
        )
