"""Rules about number formats, quantization and sharding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation, value_of


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


def torchao_training(config: RunConfig) -> Iterator[Violation]:
    """On torchao weights adapters learn in 8 bits; whole weights learn in view of the rounding."""
    quantization, method = config.quantization, config.finetuning.finetuning_type
    chosen = quantization.quantization_method == "torchao" and quantization.quantization_bit is not None
    if config.command not in TRAIN or not config.training.do_train:
        return
    if quantization.quantization_aware and not chosen:
        yield Violation(
            ("quantization_aware", "quantization_method"),
            "only torchao rounds weights while they learn",
            "set quantization_method to torchao and quantization_bit to 4 or 8",
        )
    elif quantization.quantization_aware and method not in {"full", "freeze"}:
        yield Violation(
            ("quantization_aware", "finetuning_type"), "it trains whole weights", "set finetuning_type to full"
        )
    elif chosen and not quantization.quantization_aware and quantization.quantization_bit != 8:
        yield Violation(
            ("quantization_bit", "quantization_method"),
            "adapters learn on torchao weights of 8 bits only",
            "set quantization_bit to 8, or use bnb",
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
        ("use_unsloth", config.compute.use_unsloth),
        ("quantization_bit", config.quantization.quantization_bit == 8),
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
    quantized_companions,
    torchao_training,
    quantization_device_map,
    sharded_predictions,
    sharded_weights,
    unsloth_limits,
)
