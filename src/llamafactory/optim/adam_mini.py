"""Adam-mini: Adam with one second moment for each block of a tensor, https://arxiv.org/abs/2406.16793.

Algorithm 1: v <- beta2 v + (1 - beta2) mean(G_b^2) for each block b, everything else as in AdamW. Blocks follow the
paper's partition principle: the rows of one head in query and key, one row (output neuron, or token) in every other
matrix, and the whole of a vector. The state is little more than Adam's first moment, half of AdamW's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import ADAMW_ONLY, WHOLE_WEIGHTS, Facts
from llamafactory.optim._update import (
    Group,
    State,
    TensorwiseOptimizer,
    adam_defaults,
    decay_groups,
    trained,
)

FACTS = Facts("Adam-mini", chosen_by=(("use_adam_mini", (True,)),), clashes=(*WHOLE_WEIGHTS, ADAMW_ONLY))


class AdamMini(TensorwiseOptimizer):
    """The update above. Groups: num_heads, the blocks of each tensor; 0 for rows, or the whole of a vector."""

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """m^ / (sqrt(v^) + eps), v one number for each block."""
        blocks = _blocks(gradient, group["num_heads"])
        if "m" not in state:
            state["m"] = torch.zeros_like(gradient)
            state["v"] = torch.zeros_like(blocks[:, 0])
        state["step"] = step = state.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        m: Tensor = state["m"]
        m.lerp_(gradient, 1 - beta1)
        state["v"].lerp_(blocks.square().mean(1), 1 - beta2)
        divisor = (state["v"] / (1 - beta2**step)).sqrt().add_(group["eps"])
        return (_blocks(m, group["num_heads"]) / divisor[:, None]).view_as(m) / (1 - beta1**step)


def _blocks(tensor: Tensor, num_heads: int) -> Tensor:
    """[.., A, B] -> [blocks, values of a block]."""
    if num_heads:
        return tensor.reshape(num_heads, -1)
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """Adam-mini on all trained weights."""
    by_heads: dict[int, list[nn.Parameter]] = {}
    for name, parameter in trained(model).items():
        by_heads.setdefault(num_heads(model, name, parameter), []).append(parameter)
    groups = [
        group
        for heads, parameters in by_heads.items()
        for group in decay_groups(parameters, args.weight_decay, {"num_heads": heads})
    ]
    return AdamMini(groups, adam_defaults(args))


def num_heads(model: nn.Module, name: str, parameter: nn.Parameter) -> int:
    """Heads whose rows make up a weight of query or key; 0 for any other weight, and for another model's part."""
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0))
    count = {"q_proj": heads, "k_proj": key_heads}.get(name.removesuffix(".weight").rpartition(".")[2], 0)
    return count if parameter.ndim == 2 and count * size == parameter.shape[0] else 0
