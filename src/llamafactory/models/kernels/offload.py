"""Checkpointed activations in CPU memory: a layer's input leaves the GPU after its forward pass and returns for its
backward pass, so that the memory kept on the GPU no longer grows with the number of layers.

The same numbers as plain checkpoints: nothing is rounded, the copy is exact. Chosen by `use_unsloth_gc`, the name it
has elsewhere; the package unsloth is not needed. On a CPU it works too, and saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from llamafactory.config.run import RunConfig
from llamafactory.facts import Clash, Facts

FACTS = Facts(
    "Checkpoints in CPU memory",
    chosen_by=(("use_unsloth_gc", (True,)),),
    clashes=(
        Clash("disable_gradient_checkpointing", "there would be no checkpoint to move", "remove it", values=(True,)),
        Clash("use_reentrant_gc", "only reentrant checkpoints are moved", "remove it", allowed=(True,)),
        Clash("use_unsloth", "unsloth moves its own", "remove use_unsloth_gc"),
        Clash("fsdp", "FSDP gathers weights around its own checkpoints", "use offload of FSDP itself"),
        Clash("torch_compile", "a compiled layer is not stopped for copies", "remove one of the two"),
    ),
)


def check(config: RunConfig) -> None:
    """Nothing is needed."""


def offload_checkpoints(model: nn.Module) -> int:
    """Move the checkpoints of a model, in place; returns how many layers have one.

    Call it after checkpointing was enabled in its reentrant form.
    """
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module.__dict__["_gradient_checkpointing_func"] = checkpoint_on_cpu
    return sum(
        isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing for layer in model.modules()
    )


def checkpoint_on_cpu(run: Callable[..., Any], *args: Any) -> Any:
    """Run a layer and keep its positional tensors alone, in CPU memory (pinned beside a GPU), for the backward pass."""
    with save_on_cpu(pin_memory=torch.cuda.is_available()):  # the run itself saves nothing: it is under no_grad
        return checkpoint(run, *args, use_reentrant=True)
