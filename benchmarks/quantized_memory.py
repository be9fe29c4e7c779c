"""Bytes and speed of LoRA on a plain base against LoRA on a quantized one (QLoRA), counted in one run.

python benchmarks/quantized_memory.py [--hidden 512] [--layers 4] [--vocab 4000] [--rank 8] [--tokens 128] [--bf16]

Weights: parameters, buffers and what belongs to quantized ones (scales, tables). Gradients and state: after the
backward pass, and after the update of AdamW. tokens/s: of processor time, median of --repeats, all bases in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamafactory.config import load_config
from llamafactory.models.load import load_model
from llamafactory.models.starter import build_model, build_tokenizer
from llamafactory.models.tokenizer import load_tokenizer

FORMATS: dict[str, dict[str, object]] = {
    "LoRA, plain base": {},
    "QLoRA, LLM.int8": {"quantization_bit": 8},
    "QLoRA, nf4": {"quantization_bit": 4, "double_quantization": False},
    "QLoRA, nf4, double quantization": {"quantization_bit": 4},
}
TEXTS = ["What is the weather in Paris? It is sunny, 21 degrees."] * 20


@dataclass
class Contender:
    """One base with its adapter and optimizer. seconds: processor time of each update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bf16: bool
    gradient_bytes: int
    seconds: list[float]
    loss: float = 0.0


def quantized_parts(parameter: nn.Parameter) -> Iterator[Tensor]:
    """The parameter and, where it is quantized, its scales and tables."""
    yield parameter
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, Tensor))
        state = getattr(state, "state2", None)
    scales = getattr(parameter, "SCB", None)
    if isinstance(scales, Tensor):
        yield scales


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; those that share memory count once."""
    found = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(found.values())


def weight_bytes(model: nn.Module) -> int:
    parts = [part for parameter in model.parameters() for part in quantized_parts(parameter)]
    return num_bytes([*parts, *model.buffers()])


def write_base(options: argparse.Namespace, folder: Path) -> Path:
    tokenizer = build_tokenizer(TEXTS, vocab_size=options.vocab)
    tokenizer.save_pretrained(folder)
    model: PreTrainedModel = build_model(tokenizer, hidden_size=options.hidden, num_layers=options.layers, num_heads=8)
    model.resize_token_embeddings(options.vocab, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def build(folder: Path, given: dict[str, object], options: argparse.Namespace) -> Contender:
    config = load_config(
        {"model_name_or_path": str(folder), "stage": "sft", "do_train": True, "dataset": "d", "output_dir": "unused",
         "lora_rank": options.rank, "bf16": options.bf16, "use_cpu": True,
         "disable_gradient_checkpointing": True, **given}
    )  # fmt: skip
    model = load_model(config, load_tokenizer(config), trainable=True).model
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    return Contender(model, optimizer, options.bf16, 0, [])


def update(contender: Contender, ids: Tensor) -> None:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=contender.bf16):
        loss = contender.model(input_ids=ids, labels=ids).loss
    loss.backward()
    contender.gradient_bytes = num_bytes(p.grad for p in contender.model.parameters() if p.grad is not None)
    contender.optimizer.step()
    contender.optimizer.zero_grad()
    contender.seconds.append(time.process_time() - start)
    contender.loss = loss.item()


def report(contenders: dict[str, Contender], num_tokens: int) -> None:
    print("| base | weights MiB | gradients MiB | state MiB | weights / plain | tokens/s | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    first = weight_bytes(next(iter(contenders.values())).model)
    for name, contender in contenders.items():
        weights = weight_bytes(contender.model)
        values = [value for state in contender.optimizer.state.values() for value in state.values()]
        sizes = (weights, contender.gradient_bytes, num_bytes(v for v in values if isinstance(v, Tensor)))
        shown = " | ".join(f"{size / 2**20:.1f}" for size in sizes)
        speed = num_tokens / statistics.median(contender.seconds[1:])
        print(f"| {name} | {shown} | {weights / first:.3f} | {speed:.0f} | {contender.loss:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"hidden": 512, "layers": 4, "vocab": 4000, "rank": 8, "tokens": 128, "repeats": 3}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true", help="16-bit base, computed in bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(options, Path(folder))
        contenders = {name: build(base, given, options) for name, given in FORMATS.items()}
    torch.manual_seed(0)
    ids = torch.randint(300, (1, options.tokens))
    for _ in range(options.repeats + 1):  # the first one warms up
        for contender in contenders.values():
            update(contender, ids)
    report(contenders, options.tokens)


if __name__ == "__main__":
    main()
