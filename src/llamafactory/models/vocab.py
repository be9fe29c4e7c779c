"""Growing a model's vocabulary: embedding rows for new tokens, in the input and in the output embedding.

New rows start at the mean of the old ones plus noise of standard deviation 1/sqrt(H), or at the mean embedding of a
description. The same seed gives the same rows. Knows no tokenizer file and no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamafactory.errors import ModelError
from llamafactory.logs import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = get_logger(__name__)

ROW_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class NewRows:
    """How rows of new tokens start.

    token_ids: ids of tokens that are new to the model, even where a padded vocabulary has rows for them. descriptions:
    id -> ids of the tokens that describe it. method: noise_init, desc_init or desc_init_w_noise.
    """

    token_ids: tuple[int, ...] = ()
    descriptions: Mapping[int, Sequence[int]] | None = None
    method: str = "noise_init"
    seed: int = 42


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    return model.get_input_embeddings().weight.shape[0]


def padded_rows(num_tokens: int) -> int:
    """The smallest multiple of 64 that holds `num_tokens`."""
    return math.ceil(num_tokens / ROW_MULTIPLE) * ROW_MULTIPLE


def grow_vocab(model: PreTrainedModel, rows: int, new: NewRows) -> bool:
    """Grow the embeddings to `rows` in place and set the rows of new tokens; True when the number of rows changed.

    Never shrinks. Keeps tied embeddings tied. Raises ModelError when the embeddings themselves are quantized.
    """
    old = num_rows(model)
    if rows > old and not all(weight.is_floating_point() for weight in _embedding_weights(model)):
        raise ModelError(
            "resize_vocab: the embeddings of this model are quantized, so they cannot grow; give the unquantized model"
        )
    if rows > old:
        model.resize_token_embeddings(rows, mean_resizing=False)
        logger.info("vocabulary: %d rows -> %d rows", old, rows)
    fresh = sorted({*range(old, rows), *new.token_ids})
    if fresh:
        known = [row for row in range(old) if row not in set(fresh)]
        for offset, weight in enumerate(_embedding_weights(model)):
            _fill(weight, fresh, known, new, seed=new.seed + offset)
    return rows > old


def _embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    return weights


@torch.no_grad()
def _fill(weight: Tensor, fresh: list[int], known: list[int], new: NewRows, *, seed: int) -> None:
    """Write the rows `fresh` of an embedding weight [V, H] in place."""
    mean = weight[known].float().mean(dim=0)
    values = mean.repeat(len(fresh), 1)
    described = new.descriptions or {}
    if new.method != "noise_init":
        allowed = set(known)
        for position, row in enumerate(fresh):
            words = [token for token in described.get(row, ()) if token in allowed]
            if words:
                values[position] = weight[words].float().mean(dim=0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(values.shape, generator=generator) / math.sqrt(values.shape[1])
    if new.method == "desc_init":
        noise[[position for position, row in enumerate(fresh) if described.get(row)]] = 0.0
    weight[fresh] = (values + noise.to(values.device)).to(weight.dtype)
