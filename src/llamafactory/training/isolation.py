"""Do packed examples really not see each other in this model? Asked of the model itself, before the first step.

Knows no family: attention back ends and architectures differ, and a leak would train a worse model in silence.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from llamafactory.errors import ConfigError

PROBE_TOKENS = 6


@torch.no_grad()
def check_isolation(model: PreTrainedModel, *, flat: bool) -> None:
    """Raise ConfigError when the logits of an example change with the one packed before it.

    flat: batches are one row; otherwise two rows are probed, as in a batch of several packed rows.
    """
    vocab_size = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    tokens = torch.arange(2 * PROBE_TOKENS, device=device) % vocab_size
    first, second = tokens.split(PROBE_TOKENS)
    places = torch.arange(PROBE_TOKENS, device=device).repeat(2)
    rows = 1 if flat else 2
    was_training = model.training
    model.eval()
    try:
        after_first, after_second = (
            _logits(model, torch.cat([before, second]).repeat(rows, 1), places.repeat(rows, 1))[:, PROBE_TOKENS:]
            for before in (first, second)
        )
    except TypeError as error:
        raise ConfigError(
            f"packing: {type(model).__name__} takes no position ids, so packed examples would see each other; "
            "set packing: false and batch_layout: padded"
        ) from error
    finally:
        model.train(was_training)
    if not torch.allclose(after_first.float(), after_second.float(), rtol=1e-2, atol=1e-3):
        text = model.config.get_text_config()
        raise ConfigError(
            f"packing: {text.model_type} with the attention '{text._attn_implementation}' lets packed examples see "
            "each other, which would train on wrong contexts; set packing: false and batch_layout: padded, or another "
            "flash_attn"
        )


def _logits(model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, position_ids=places, use_cache=False).logits
    return logits
