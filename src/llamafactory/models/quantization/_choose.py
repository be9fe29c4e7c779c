"""Which part quantizes a base, and what a quantized base refuses. Knows no part by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.config.rules_parts import clashes_of
from llamafactory.config.section import TRAIN
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.errors import ModelError
from llamafactory.logs import notice
from llamafactory.models.quantization import QUANTIZERS, Quantizer, part_name, stored_settings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig


def choose_quantizer(
    config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool
) -> Quantizer | None:
    """The quantizer of a run, None for a plain base. Raises ConfigError, ModelError, MissingPackageError."""
    settings, wanted = stored_settings(hf_config), config.quantization
    if settings is None:
        if wanted.quantization_bit is None:
            return None
        part = QUANTIZERS.load(wanted.quantization_method)
        return part.build(config, hf_config, dtype=dtype, trainable=trainable)
    name = part_name(settings)
    if name not in QUANTIZERS.names():
        raise ModelError(
            f"{_stored(config, name)}, which this version cannot read (it reads {', '.join(QUANTIZERS.names())}); "
            "give the unquantized model"
        )
    if wanted.quantization_bit is not None:
        notice(
            f"quantization_bit: {wanted.quantization_bit} has no effect, the checkpoint is quantized already ({name})"
        )
    part = QUANTIZERS.load(name)
    quantizer: Quantizer = part.build(config, hf_config, dtype=dtype, trainable=trainable)
    if quantizer.result is not None:
        _refuse_stored(config, name, quantizer, trainable=trainable)
    return quantizer


def _refuse_stored(config: RunConfig, name: str, quantizer: Quantizer, *, trainable: bool) -> None:
    """Raise ModelError for what the options ask of weights that turn out to be stored quantized."""
    method, adapters = config.finetuning.finetuning_type, config.model.adapter_name_or_path
    plain = "give the unquantized model as model_name_or_path"
    if config.model.train_from_scratch:
        problem = "train_from_scratch makes random weights, which are not quantized"
    elif trainable and method not in ADAPTER_METHODS:
        problem, plain = f"finetuning_type: {method} cannot train it", f"set finetuning_type: lora, or {plain}"
    elif trainable and not quantizer.learns:
        problem = "adapters on it cannot be trained"
    elif trainable and config.lora.use_dora and quantizer.result is not None and quantizer.result.bits == 8:
        problem, plain = "use_dora: PEFT's DoRA cannot read 8-bit weights", f"remove use_dora, or {plain}"
    elif trainable and config.lora.changes_base:
        problem = f"lora_init: {config.lora.init} takes values out of unquantized weights"
    elif config.command == "export" and adapters:
        problem = "an adapter cannot be merged into it"
    elif len(adapters) > 1 or (adapters and config.lora.create_new_adapter and config.command in TRAIN):
        problem, plain = "adapters cannot be merged into it", f"give one adapter to go on with, or {plain}"
    else:
        clash = next(
            clashes_of(config, QUANTIZERS.load(name).FACTS, "model_name_or_path", but={"quantization_bit"}), None
        )
        if clash is None:
            return
        problem, plain = f"{clash.keys[-1]}: {clash.why}", clash.fix
    raise ModelError(f"{_stored(config, name)}, and {problem}; {plain}")


def _stored(config: RunConfig, name: str) -> str:
    return f"model_name_or_path: {config.model.model_name_or_path!r} is stored quantized ({name})"
