"""Rules about number formats, quantization and sharding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.config.violation import Rule, Violation, value_of

BITS = {"hqq": {1, 2, 3, 4, 5, 6, 8}, "eetq": {8}}


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
    if method not in BITS and method != "bnb":
        yield Violation(keys, "this format is only read from a checkpoint", "use bnb, hqq or eetq, or remove the bits")
    elif method in BITS and bits not in BITS[method]:
        yield Violation(keys, f"{method} has {', '.join(map(str, sorted(BITS[method])))} bits", "choose one of these")
    if config.finetuning.finetuning_type not in ADAPTER_METHODS:
        yield Violation(
            ("quantization_bit", "finetuning_type"), "quantized weights cannot learn", "set finetuning_type to lora"
        )
    yield from _adapters_on_quantized(config)
    if config.lora.create_new_adapter and config.model.adapter_name_or_path:
        yield Violation(
            ("create_new_adapter", "quantization_bit"),
            "the given adapter cannot be merged into quantized weights",
            "merge it with `export` first",
        )
    if config.lora.use_dora and method != "bnb":
        yield Violation(("use_dora", "quantization_method"), "DoRA reads bnb weights only", "use bnb")


def _adapters_on_quantized(config: RunConfig) -> Iterator[Violation]:
    """One adapter stays beside quantized weights; none is merged into them, nor are several."""
    keys, why = ("adapter_name_or_path", "quantization_bit"), "adapters cannot be merged into quantized weights"
    if config.command == "export" and config.model.adapter_name_or_path:
        yield Violation(keys, why, "remove quantization_bit to merge into the plain ones")
    elif len(config.model.adapter_name_or_path) > 1:
        yield Violation(keys, why, "give one adapter, or merge the others with `export` first")


def quantized_companions(config: RunConfig) -> Iterator[Violation]:
    """The quantized reference and reward models, too, carry one adapter at most."""
    for bits, adapters, named in (
        ("ref_model_quantization_bit", "ref_model_adapters", config.preference.ref_model_adapters),
        ("reward_model_quantization_bit", "reward_model_adapters", config.ppo.reward_model_adapters),
    ):
        if value_of(config, bits) is not None and len(named) > 1 and config.command in TRAIN:
            yield Violation(
                (adapters, bits),
                "adapters cannot be merged into quantized weights",
                "give one adapter, or merge the others with `export` first",
            )


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


def fp8_limits(config: RunConfig) -> Iterator[Violation]:
    """FP8 products are for plain weights in stages pt and sft."""
    if not config.fp8.fp8 or config.command not in TRAIN:
        return
    if config.quantization.quantization_bit is not None:
        yield Violation(("fp8", "quantization_bit"), "the weights are quantized already", "remove one of the two")
    if config.finetuning.stage not in {"pt", "sft"}:
        yield Violation(("fp8", "stage"), "only stages pt and sft compute in FP8", "remove fp8")


def sharded_predictions(config: RunConfig) -> Iterator[Violation]:
    """Answers are generated by a whole model."""
    training = config.training
    if not training.fsdp and zero_stage(config) != 3:
        return
    key = "fsdp" if training.fsdp else "deepspeed"
    if training.do_predict and config.finetuning.stage != "rm":
        yield Violation(
            ("do_predict", key),
            "answers need whole weights, and this run spreads them",
            "set do_predict to false and use the command predict afterwards",
        )
    elif training.predict_with_generate:
        yield Violation(
            ("predict_with_generate", key),
            "answers need whole weights, and this run spreads them",
            "remove predict_with_generate",
        )


def sharded_weights(config: RunConfig) -> Iterator[Violation]:
    """ZeRO-3 spreads every weight, so nothing may need a whole one at the start."""
    if zero_stage(config) != 3:
        return
    for key, on in (
        ("pissa_init" if config.lora.pissa_init else "lora_init", config.lora.changes_base),
        ("use_unsloth", config.compute.use_unsloth),
        ("quantization_bit", config.quantization.quantization_bit == 8),
    ):
        if on:
            yield Violation((key, "deepspeed"), "it needs whole weights, and ZeRO-3 spreads them", f"remove {key}")


def unsloth_limits(config: RunConfig) -> Iterator[Violation]:
    """unsloth holds one LoRA adapter."""
    if not config.compute.use_unsloth:
        return
    if config.finetuning.finetuning_type == "oft":
        yield Violation(("use_unsloth", "finetuning_type"), "unsloth has no OFT", "set finetuning_type to lora")
    if len(config.model.adapter_name_or_path) > 1:
        yield Violation(("adapter_name_or_path", "use_unsloth"), "unsloth takes one adapter", "merge the others first")


RULES: tuple[Rule, ...] = (
    deepspeed_file_exists,
    one_precision,
    quantization_limits,
    quantized_companions,
    quantization_device_map,
    fp8_limits,
    sharded_predictions,
    sharded_weights,
    unsloth_limits,
)
