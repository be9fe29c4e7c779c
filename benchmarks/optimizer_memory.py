"""Bytes that each optimizer holds beside the weights, next to plain AdamW, counted tensor by tensor in one run.

python benchmarks/optimizer_memory.py [--hidden 256] [--layers 6] [--vocab 4000] [--rank 16] [--bf16]

State: the optimizer's tensors after two updates. Gradients: those alive when the backward pass has ended; with updates
in the backward pass only one at a time is, and the largest counts.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer

from llamafactory.config import load_config
from llamafactory.optim import TensorwiseOptimizer, build_optimizer
from llamafactory.training.arguments import build_training_arguments

BASE = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "unused", "finetuning_type": "full"}


def methods(rank: int) -> dict[str, dict[str, object]]:
    """Row name -> options."""
    galore = {"use_galore": True, "galore_rank": rank}
    apollo = {"use_apollo": True, "apollo_rank": rank}
    eight = {"optim": "adamw_8bit"}
    found: dict[str, dict[str, object]] = {
        "AdamW": {},
        f"GaLore, rank {rank}": galore,
        f"GaLore, rank {rank}, 8 bits": galore | eight,
        f"GaLore, rank {rank}, Adafactor": galore | {"optim": "adafactor"},
        f"GaLore, rank {rank}, layerwise": galore | {"galore_layerwise": True},
        f"APOLLO, rank {rank}": apollo,
        "APOLLO-Mini": {"use_apollo": True, "apollo_rank": 1, "apollo_scale": 128.0, "apollo_scale_type": "tensor"},
        f"APOLLO, rank {rank}, layerwise": apollo | {"apollo_layerwise": True},
        "BAdam, one layer": {"use_badam": True},
        "BAdam, 5 % of all entries": {"use_badam": True, "badam_mode": "ratio"},
        "Adam-mini": {"use_adam_mini": True},
        "Muon": {"use_muon": True},
        "LOMO": {"optim": "lomo"},
        "AdaLomo": {"optim": "adalomo"},
        "Adafactor": {"optim": "adafactor"},
    }
    if importlib.util.find_spec("bitsandbytes") is not None:
        found["AdamW, 8 bits (bitsandbytes)"] = eight
    return found


def num_bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def model_of(options: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16 if options.bf16 else torch.float32)


def measure(given: dict[str, object], options: argparse.Namespace) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state of two updates of a new model."""
    model = model_of(options)
    config = load_config(BASE | given | ({"pure_bf16": True} if options.bf16 else {}))
    args = build_training_arguments(config)
    optimizer = build_optimizer(model, config, args)
    if optimizer is None:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = kind(model.parameters(), **settings)
    ids = torch.randint(options.vocab, (1, 16))
    gradients = 0
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        gradients = num_bytes(parameter.grad for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    if isinstance(optimizer, TensorwiseOptimizer) and optimizer.in_backward:
        gradients = max(num_bytes([parameter]) for parameter in model.parameters())
    values = (value for state in optimizer.state.values() for value in state.values())
    return (
        num_bytes(model.parameters()),
        gradients,
        num_bytes(value for value in values if isinstance(value, Tensor)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 256), ("layers", 6), ("vocab", 4000), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16 (pure_bf16)")
    options = parser.parse_args()
    print("| optimizer | weights MiB | gradients MiB | state MiB | state / AdamW | all / AdamW |")
    print("| --- | --- | --- | --- | --- | --- |")
    base: tuple[int, int, int] | None = None
    for name, given in methods(options.rank).items():
        found = measure(given, options)
        base = base or found
        sizes = " | ".join(f"{value / 2**20:.1f}" for value in found)
        print(f"| {name} | {sizes} | {found[2] / base[2]:.3f} | {sum(found) / sum(base):.2f} |", flush=True)


if __name__ == "__main__":
    main()
