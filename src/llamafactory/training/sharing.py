"""May both answers of a pair share one row, and so one computation of their prompt? Asked of the model itself.

Knows no family by name: a tiny pair is scored both ways, and anything but equal logits means no.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llamafactory.data.collate import Collator
from llamafactory.data.pairs import Mask, PairCollator
from llamafactory.logs import get_logger

logger = get_logger(__name__)

_MASKS: dict[str, Mask] = {"sdpa": "bool", "eager": "additive"}
_PROMPT, _CHOSEN, _REJECTED = 5, 4, 3


def choose_sharing(model: PreTrainedModel, max_length: int | None) -> Mask | None:
    """The form of mask in which this model computes shared rows exactly; None when it cannot.

    max_length: most tokens of a sequence. Models with a window of attention that a sequence can outgrow, and with a
    router loss over all tokens of a batch, cannot.
    """
    text = model.config.get_text_config()
    mask = _MASKS.get(str(getattr(text, "_attn_implementation", "")))
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    narrow = any(window is not None and (max_length is None or window < max_length) for window in windows)
    if mask is None or narrow or getattr(text, "output_router_logits", False):
        why = "its router loss" if mask and not narrow else "its attention"
    elif not _is_exact(model, mask):
        why = "a test pair, which gave other numbers"
    else:
        return mask
    logger.info("prompts of pairs are computed twice, because of %s", why)
    return None


@torch.no_grad()
def _is_exact(model: PreTrainedModel, mask: Mask) -> bool:
    """Whether the answers of a pair have the same logits in one shared row and in two of their own."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        shared = _answer_logits(model, {k: v.to(device) for k, v in PairCollator(_ROWS, mask)([_pair(model)]).items()})
        plain = _answer_logits(model, {k: v.to(device) for k, v in PairCollator(_ROWS)([_pair(model)]).items()})
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        logger.debug("shared rows: %s", error)
        return False
    finally:
        model.train(was_training)
    tolerance = 1e-4 if plain.dtype == torch.float32 else 5e-2
    return torch.allclose(shared, plain, rtol=tolerance, atol=tolerance)


_ROWS = Collator(pad_token_id=0)


def _pair(model: PreTrainedModel) -> dict[str, list[int]]:
    vocab_size = model.config.get_text_config().vocab_size
    tokens = [index % vocab_size for index in range(3, 3 + _PROMPT + _CHOSEN + _REJECTED)]
    prompt, chosen, rejected = tokens[:_PROMPT], tokens[_PROMPT : _PROMPT + _CHOSEN], tokens[-_REJECTED:]
    pair: dict[str, list[int]] = {}
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        pair[f"{side}_input_ids"] = prompt + answer
        pair[f"{side}_labels"] = [-100] * len(prompt) + answer
    return pair


def _answer_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits [N, V] of all answer tokens, chosen first."""
    names = ("input_ids", "attention_mask", "position_ids")
    logits = model(**{name: batch[name] for name in names if name in batch}, use_cache=False).logits
    if "kept_index" in batch:
        return logits.flatten(0, 1)[batch["kept_index"]]
    row, column = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
    return logits[row, column]
