"""Shifted sparse attention of LongLoRA (S2-Attn, https://arxiv.org/abs/2309.12307, section 3.2), for training.

A sequence of n tokens is cut into four groups of G = ceil(n / 4) tokens, made even. The first half of the heads attends
within these groups, the other half within groups that begin G / 2 tokens later, so neighbours overlap. Attention stays
causal. At the borders, where the paper's roll would join the last and the first half group, the two stay apart: no
token sees a later one (the paper's "separate group" mask). Costs a quarter of full attention, and needs no mask.

n counts the real tokens of a row, so padding changes nothing and the width of a batch need not be a multiple of four.
Evaluation and inference use full attention. Knows transformers' attention registry, no model class.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from llamafactory.config.run import RunConfig
from llamafactory.errors import ModelError
from llamafactory.facts import PACKED, Clash, Facts
from llamafactory.models.families import families_with, family_facts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "shifted_sparse"
NUM_GROUPS = 4

FACTS = Facts(
    "Shifted sparse attention",
    chosen_by=(("shift_attn", (True,)),),
    clashes=(
        Clash(PACKED, "groups would join packed examples", "set packing to false"),
        Clash("batch_layout", "groups would join examples laid end to end", "set it to padded", values=("flat",)),
        Clash("flash_attn", "the groups are computed by sdpa", "remove flash_attn", allowed=("auto", "sdpa")),
        Clash(
            "stage",
            "only supervised texts are long enough to be cut into groups",
            "remove shift_attn",
            allowed=("pt", "sft"),
        ),
        Clash("mixture_of_depths", "groups need all tokens of a sequence", "keep one of the two"),
        Clash("use_unsloth", "unsloth brings its own attention", "keep one of the two"),
        Clash("torch_compile", "the groups change with every batch", "remove one of the two"),
    ),
)


def check(config: RunConfig) -> None:
    """Nothing is needed."""


def register_shifted(hf_config: PretrainedConfig) -> str:
    """Put the attention into transformers' registry and return its name for `attn_implementation`.

    Raises ModelError for a model whose attention does more than the groups can repeat.
    """
    text = hf_config.get_text_config()
    if not family_facts(text).shifted:
        raise ModelError(
            f"shift_attn: {text.model_type} cannot be cut into shifted groups (families that can: "
            f"{', '.join(families_with('shifted'))}); remove shift_attn"
        )
    if _has_window(text):
        raise ModelError(
            f"shift_attn: this {text.model_type} already looks back {text.sliding_window} tokens only (sliding_window "
            "in its config.json), and its windows are not groups; remove shift_attn"
        )
    AttentionInterface.register(NAME, shifted_attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)  # the padding mask [B, T] itself, None without padding
    return NAME


def _has_window(text: PretrainedConfig) -> bool:
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text, "sliding_window", None) is not None


def shifted_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, heads, T, D] query, [B, key heads, T, D] key and value -> [B, T, heads, D]; zeros at padding.

    attention_mask: [B, T] bool, padded on the right in training; None without padding.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if not module.training:
        return _full(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    output = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    lengths = None if attention_mask is None else attention_mask.sum(-1)
    for length in [query.shape[2]] if lengths is None else lengths.unique().tolist():
        rows = slice(None) if lengths is None else (lengths == length).nonzero().flatten()
        parts = (states[rows, :, :length] for states in (query, key, value))
        output[rows, :, :length] = _halves(*parts, scaling=scaling, dropout=dropout)
    return output.transpose(1, 2).contiguous(), None


def _halves(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """[b, H, n, D] without padding: half of the heads in plain groups, half in shifted ones."""
    size = group_size(query.shape[2])
    half = query.shape[1] // 2
    halves = [states.split([half, query.shape[1] - half], dim=1) for states in (query, key, value)]
    plain, shifted = zip(*halves, strict=True)
    return torch.cat([_grouped(plain, size, size, **options), _grouped(shifted, size // 2, size, **options)], dim=1)


def group_size(length: int) -> int:
    """Tokens of a group: a quarter of the sequence, rounded up to an even number."""
    return 2 * math.ceil(length / (2 * NUM_GROUPS))


def _grouped(states: tuple[Tensor, ...], first: int, size: int, **options: Any) -> Tensor:
    """Causal attention within consecutive groups: one of `first` tokens, then groups of `size`, then the rest."""
    length = states[0].shape[2]
    first = min(first, length)
    end = first + (length - first) // size * size
    found = [_causal(*(part[:, :, :first] for part in states), **options)]
    if end > first:
        groups = [part[:, :, first:end].unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for part in states]
        whole = _causal(*groups, **options)
        found.append(whole.unflatten(0, (len(states[0]), -1)).transpose(1, 2).flatten(2, 3))
    if end < length:
        found.append(_causal(*(part[:, :, end:] for part in states), **options))
    return torch.cat(found, dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, dropout: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)


def _full(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Causal attention over everything before, for evaluation; keys may start earlier than queries."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is None and num_queries == num_keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    if mask is not None:  # a row of padding sees itself: nothing to look at would be no number
        itself = seen ^ seen.tril(num_keys - num_queries - 1)
        seen = seen & mask[:, None, None, :] | itself
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
