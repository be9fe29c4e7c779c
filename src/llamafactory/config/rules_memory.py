"""Rules about number formats, quantization and sharding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.config.violation import Rule, Violation

BITS = {"bnb": {4, 8}, "hqq": {1, 2, 3, 4, 5, 6, 8}, "eetq": {8}}


def zero_stage(config: RunConfig) -> int | None:
    """ZeRO stage of the DeepSpeed configuration; None without one, or when the file cannot be read."""
    settings = config.training.deepspeed
    if isinstance(settings, str):
        try:
            settings = json.loads(Path(settings).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    if not isinstance(settings, Mapping):
        return None
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) else 0


def deepspeed_file_exists(config: RunConfig) -> Iterator[Violation]:
    """The file of a DeepSpeed configuration can be read."""
    settings = config.training.deepspeed
    if isinstance(settings, str) and not Path(settings).is_file():
        yield Violation(("deepspeed",), f"there is no such file (seen from {Path.cwd()})", "correct the path")


def one_precision(config: RunConfig) -> Iterator[Violation]:
    """Mixed and pure precision exclude each other."""
    chosen = [key for key in ("bf16", "fp16") if getattr(config.training, key)]
    chosen += ["pure_bf16"] if config.finetuning.pure_bf16 else []
    if len(chosen) > 1:
        yield Violation(tuple(chosen), "weights are computed in one format", "keep one of them")
    if config.finetuning.pure_bf16 and zero_stage(config) == 3:
        yield Violation(
            ("pure_bf16", "deepspeed"), "ZeRO-3 keeps its own copy of the weights", "use bf16 instead of pure_bf16"
        )


def quantization_limits(config: RunConfig) -> Iterator[Violation]:
    """Quantized weights cannot learn, grow, or be merged into."""
    bits, method = config.quantization.quantization_bit, config.quantization.quantization_method
    if bits is None:
        return
    keys = ("quantization_bit", "quantization_method")
    if method not in BITS:
        yield Violation(keys, "this format is only read from a checkpoint", "use bnb, hqq or eetq, or remove the bits")
    elif bits not in BITS[method]:
        yield Violation(keys, f"{method} has {', '.join(map(str, sorted(BITS[method])))} bits", "choose one of these")
    if config.finetuning.finetuning_type not in ADAPTER_METHODS:
        yield Violation(
            ("quantization_bit", "finetuning_type"), "quantized weights cannot learn", "set finetuning_type to lora"
        )
    if config.vocab.resize_vocab:
        yield Violation(("quantization_bit", "resize_vocab"), "quantized embeddings cannot grow", "remove one of them")
    if len(config.model.adapter_name_or_path) > 1:
        yield Violation(
            ("adapter_name_or_path", "quantization_bit"),
            "adapters cannot be merged into quantized weights",
            "give one adapter",
        )
    if config.lora.create_new_adapter and config.model.adapter_name_or_path:
        yield Violation(
            ("create_new_adapter", "quantization_bit"),
            "the given adapter cannot be merged into quantized weights",
            "merge it with `export` first",
        )
    if config.lora.use_dora and method != "bnb":
        yield Violation(("use_dora", "quantization_method"), "DoRA reads bnb weights only", "use bnb")


def quantization_device_map(config: RunConfig) -> Iterator[Violation]:
    """Spreading a quantized model is for inference with bnb in 4 bits."""
    quantization = config.quantization
    if quantization.quantization_device_map is None:
        return
    if config.training.do_train:
        yield Violation(
            ("quantization_device_map", "do_train"), "training places the model itself", "remove the device map"
        )
    elif (quantization.quantization_method, quantization.quantization_bit) != ("bnb", 4):
        yield Violation(
            ("quantization_device_map", "quantization_bit"), "only 4-bit bnb can be spread", "remove the device map"
        )


def sharded_weights(config: RunConfig) -> Iterator[Violation]:
    """ZeRO-3 spreads every weight, so nothing may need a whole one at the start."""
    if zero_stage(config) != 3:
        return
    for key, on in (
        ("pissa_init" if config.lora.pissa_init else "lora_init", config.lora.changes_base),
        ("use_unsloth", config.compute.use_unsloth),
        ("predict_with_generate", config.training.predict_with_generate),
    ):
        if on:
            yield Violation((key, "deepspeed"), "it needs whole weights, and ZeRO-3 spreads them", f"remove {key}")


def unsloth_limits(config: RunConfig) -> Iterator[Violation]:
    """unsloth holds one LoRA adapter."""
    if not config.compute.use_unsloth:
        return
    if len(config.model.adapter_name_or_path) > 1:
        yield Violation(("adapter_name_or_path", "use_unsloth"), "unsloth takes one adapter", "merge the others first")


RULES: tuple[Rule, ...] = (
    deepspeed_file_exists,
    one_precision,
    quantization_limits,
    quantization_device_map,
    sharded_weights,
    unsloth_limits,
)
