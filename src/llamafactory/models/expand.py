"""Block expansion: after every L/n layers a copy whose two output projections are zero, so that it passes its input on.

Changes a model in memory and writes it; knows no training.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from llamafactory.config.sections.hub import HubConfig
from llamafactory.errors import ConfigError, ModelError
from llamafactory.models.build import reload_model
from llamafactory.models.compat import calm_libraries
from llamafactory.models.hub import fetch
from llamafactory.models.modules import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION_OUT = ("o_proj", "out_proj", "wo")
_MLP_OUT = ("down_proj", "fc2", "w2")
_PROBE_TOKENS = 16


def expand_model(name: str, count: int, folder: Path) -> int:
    """Write `name` with `count` further blocks and its tokenizer into `folder`; returns the new number of blocks.

    Raises ConfigError when the count does not divide the layers, ModelError when the answers would change.
    """
    source = fetch(name, HubConfig(), key="expand")
    calm_libraries()
    model = reload_model(source, "auto")
    before = _probe(model)
    layers = insert_blocks(model, count)
    if not torch.equal(before, _probe(model)):
        raise ModelError(f"expand: the added blocks change the answers of this {model.config.model_type}; not written")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return layers


def insert_blocks(model: PreTrainedModel, count: int) -> int:
    """Insert the blocks in place and adapt the configuration; returns the new number of blocks."""
    found = find_layers(model)
    if count < 1 or found.count % count:
        raise ConfigError(
            f"expand: num_expand: got {count}, but the model has {found.count} layers, which must be a multiple of it; "
            f"choose a divisor of {found.count}"
        )
    old = model.get_submodule(found.prefix)
    assert isinstance(old, nn.ModuleList)
    stride = found.count // count
    origin = [index for index in range(found.count) for _ in range(2 if (index + 1) % stride == 0 else 1)]
    blocks = [
        _neutral(old[index]) if position and origin[position - 1] == index else old[index]
        for position, index in enumerate(origin)
    ]
    parent, _, last = found.prefix.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList(blocks))
    _renumber(model, blocks, origin)
    return len(blocks)


def _neutral(block: nn.Module) -> nn.Module:
    """A copy that adds nothing to the residual stream. Raises ModelError when its two outputs are not found."""
    new = copy.deepcopy(block)
    for names in (_ATTENTION_OUT, _MLP_OUT):
        outputs = [weight for name, weight in new.named_parameters() if set(name.split(".")) & set(names)]
        if not outputs:
            raise ModelError(
                f"expand: a {type(block).__name__} has no weight called {' or '.join(names)}, so its copy cannot be "
                "made neutral; use a model with blocks like Llama's"
            )
        for weight in outputs:
            weight.data.zero_()
    return new


def _renumber(model: PreTrainedModel, blocks: list[nn.Module], origin: list[int]) -> None:
    """Layer numbers in the blocks (they index the cache), and lists of the configuration with one entry a layer."""
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    text = model.config.get_text_config()
    count = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count and key.startswith(("layer", "mlp_layer")):
            setattr(text, key, [value[index] for index in origin])
    text.num_hidden_layers = len(blocks)


@torch.no_grad()
def _probe(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(1, _PROBE_TOKENS + 1)[None] % model.config.get_text_config().vocab_size
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)
