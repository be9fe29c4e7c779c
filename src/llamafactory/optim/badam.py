"""BAdam: Adam on one block of the weights at a time, https://arxiv.org/abs/2404.02827.

Algorithm 1: for badam_switch_interval steps Adam trains the active block alone, starting from empty moments; then the
next block takes its turn. `badam_mode: layer`: a block is a layer, and all other weights are frozen, so they need
neither gradients nor moments. `badam_mode: ratio`: a block is a share of the entries of every tensor. Embeddings and
the output embedding (in layer mode also the last norm) never learn.

Which block is active follows from the number of steps made and the seed, so a resumed run goes on with the same blocks.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.facts import ADAMW_ONLY, FULL_WEIGHTS, WHOLE_WEIGHTS, Clash, Facts
from llamafactory.optim._block_adam import LayerAdam, Turns
from llamafactory.optim._ratio_adam import RatioAdam
from llamafactory.optim._update import adam_defaults, decay_groups, trained

FACTS = Facts(
    "BAdam",
    chosen_by=(("use_badam", (True,)),),
    clashes=(
        FULL_WEIGHTS,
        *WHOLE_WEIGHTS,
        ADAMW_ONLY,
        Clash("fp16", "its gradients would be 16-bit numbers without a scale", "use bf16 or pure_bf16"),
        Clash("several processes", "the weights that learn change during the run", "use one process"),
    ),
)


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """BAdam by the `badam_*` options. Raises ConfigError."""
    interval = config.badam.badam_switch_interval
    turns = Turns(
        interval=None if interval in {None, -1, 0} else interval,
        mode=config.badam.badam_switch_mode or "fixed",
        start=config.badam.badam_start_block,
        seed=args.seed,
    )
    verbose = config.badam.badam_verbose
    if config.badam.badam_mode == "ratio":
        groups = decay_groups(_freeze_embeddings(model), args.weight_decay)
        scattered = config.badam.badam_mask_mode == "scatter"
        share = config.badam.badam_update_ratio
        return RatioAdam(groups, adam_defaults(args), turns, share=share, scattered=scattered)
    blocks = _layers(model)
    if turns.start is not None and turns.start >= len(blocks):
        raise ConfigError(
            f"{config.place('badam_start_block')}: badam_start_block: {turns.start} is too large, because the model "
            f"has {len(blocks)} blocks (0 to {len(blocks) - 1}) that learn; choose one of these"
        )
    groups = [
        {**group, "block": number}
        for number, block in enumerate(blocks)
        for group in decay_groups(block, args.weight_decay)
    ]
    _freeze_all_but(model, blocks)
    return LayerAdam(groups, adam_defaults(args), turns, num_blocks=len(blocks), verbose=verbose)


def _layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The trained weights of each layer, in order; layers without any are left out. Raises ConfigError."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found: list[list[nn.Parameter]] = []
    if stacks:
        stack = max(stacks, key=lambda module: sum(parameter.numel() for parameter in trained(module).values()))
        found = [list(trained(layer).values()) for layer in stack]
    blocks = [block for block in found if block]
    if not blocks:
        raise ConfigError(
            f"badam_mode: layer needs layers with weights that learn, and {type(model).__name__} has none; "
            "set badam_mode: ratio, or unfreeze some layers"
        )
    return blocks


def _freeze_all_but(model: nn.Module, blocks: list[list[nn.Parameter]]) -> None:
    kept = {id(parameter) for block in blocks for parameter in block}
    for parameter in trained(model).values():
        parameter.requires_grad_(id(parameter) in kept)


def _freeze_embeddings(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights but those of the embeddings, which are frozen here."""
    for name, parameter in trained(model).items():
        if "embed" in name or "lm_head" in name:
            parameter.requires_grad_(False)
    return list(trained(model).values())
