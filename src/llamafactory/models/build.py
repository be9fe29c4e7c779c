"""From a checked folder to a transformers model: read the configuration, read or create the weights, check the result.

Knows transformers' loading calls; no vocabulary, no adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from llamafactory import env
from llamafactory.config.section import TRAIN
from llamafactory.errors import ConfigError, ModelError, first_line
from llamafactory.logs import get_logger
from llamafactory.models.hub import check_weights, fetch
from llamafactory.models.kernels.mixture_of_depths import apply_depths
from llamafactory.models.kernels.unsloth import load_unsloth
from llamafactory.models.quantization import mark
from llamafactory.models.safetensors_file import folder_shapes

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PretrainedConfig

    from llamafactory.config.run import RunConfig
    from llamafactory.models.quantization import Quantizer

logger = get_logger(__name__)


def read_config(config: RunConfig) -> tuple[Path, PretrainedConfig]:
    """Fetch the base model and read its configuration. Raises ConfigError, ModelError."""
    name = config.model.model_name_or_path
    if not name:
        raise ConfigError("model_name_or_path: a model is needed, but none was given; name a folder or a hub id")
    folder = fetch(name, config.hub, key="model_name_or_path", weights=not config.model.train_from_scratch)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"model_name_or_path: {name!r} is an adapter (it holds adapter_config.json), not a full model; "
            "give it as adapter_name_or_path and its base as model_name_or_path"
        )
    try:
        hf_config = AutoConfig.from_pretrained(
            folder, trust_remote_code=config.hub.trust_remote_code, local_files_only=True
        )
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"model_name_or_path: {folder} has no configuration this release can read ({first_line(error)}); "
            "check config.json, or update transformers"
        ) from error
    return folder, hf_config


def stored_dtype(hf_config: PretrainedConfig) -> torch.dtype | None:
    """The number format a checkpoint declares, None when it does not."""
    declared = hf_config.dtype or getattr(hf_config.get_text_config(), "dtype", None)
    return getattr(torch, declared) if isinstance(declared, str) else declared


def build_weights(
    config: RunConfig,
    folder: Path,
    hf_config: PretrainedConfig,
    *,
    attention: str | None,
    dtype: torch.dtype,
    trainable: bool,
    quantizer: Quantizer | None = None,
) -> PreTrainedModel:
    """Read the weights, or create random ones with train_from_scratch. Raises ModelError, CheckpointError."""
    if trainable and config.compute.use_unsloth:
        model = load_unsloth(config, folder, dtype)
        if quantizer is not None:
            mark(model, quantizer.result, folder)
        return model
    options: dict[str, object] = {"dtype": dtype, "trust_remote_code": config.hub.trust_remote_code}
    options |= quantizer.options if quantizer is not None else {}
    if attention is not None:
        options["attn_implementation"] = attention
    auto = AutoModelForImageTextToText if _is_multimodal(hf_config) else AutoModelForCausalLM
    try:
        if config.model.train_from_scratch:
            model = auto.from_config(hf_config, **options)
        else:
            model = _read_weights(auto, config, folder, {"config": hf_config, **options}, trainable=trainable)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"model_name_or_path: {folder} could not be loaded: {first_line(error)}") from error
    refuse_meta(model, folder)
    if quantizer is not None:
        model = quantizer.finish(model)
        mark(model, quantizer.result, folder)
    repair_generation(model.generation_config)
    model.name_or_path = config.model.model_name_or_path
    return model


def _read_weights(
    auto: type, config: RunConfig, folder: Path, options: dict[str, object], *, trainable: bool
) -> PreTrainedModel:
    allow_pickle = config.hub.allow_pickle_weights
    safe = check_weights(folder, str(folder), key="model_name_or_path", allow_pickle=allow_pickle)
    options.setdefault("device_map", None if trainable else _inference_devices(config))
    if options["device_map"] == "auto":
        options["offload_folder"] = config.model.offload_folder
    if not safe:
        return _read_pickled(auto, folder, options)
    folder_shapes(folder)  # a damaged file is told by name
    model, report = auto.from_pretrained(  # type: ignore[attr-defined]
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
    )
    _refuse_missing(sorted(report["missing_keys"]), folder)
    return model


def _read_pickled(auto: type, folder: Path, options: dict[str, object]) -> PreTrainedModel:
    """Read .bin weights with the unpickler that builds tensors only; anything else in the file is refused."""
    try:
        model, report = auto.from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=False, weights_only=True, local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # a hostile or damaged pickle fails in many ways
        raise ModelError(
            f"model_name_or_path: the pickled weights in {folder} cannot be read ({type(error).__name__}); they "
            "are damaged or hold more than tensors, convert them to safetensors"
        ) from error
    _refuse_missing(sorted(report["missing_keys"]), folder)
    return model


def _refuse_missing(missing: list[str], folder: Path) -> None:
    if missing:
        raise ModelError(
            f"model_name_or_path: {folder} lacks {len(missing)} of the model's tensors, such as {missing[0]}, which "
            "would start random; download the model again, or set train_from_scratch: true"
        )


def _is_multimodal(hf_config: PretrainedConfig) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(hf_config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _inference_devices(config: RunConfig) -> str | dict[str, torch.device] | None:
    """Spread over all devices; a model that scores beside a trained one stays on the device of its process."""
    on_cpu = config.training.use_cpu or (config.command == "export" and config.export.export_device == "cpu")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or on_cpu:
        return None
    beside = config.command in TRAIN and config.training.do_train
    return {"": torch.device(accelerator.type, env.local_rank())} if beside else "auto"


def refuse_meta(model: nn.Module, source: Path | str) -> None:
    """Raise ModelError when a tensor of `model` was never filled."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty and not hasattr(model, "hf_device_map"):
        raise ModelError(
            f"{source}: {len(empty)} tensors were left without values, such as {empty[0]}; the files are incomplete, "
            "download or save the model again"
        )


def repair_generation(generation: GenerationConfig | None) -> None:
    """Make a generation configuration consistent, in place: sampling values without do_sample cannot be saved."""
    if generation is None or generation.do_sample:
        return
    for name in ("temperature", "top_p", "typical_p", "min_p"):
        if getattr(generation, name, None) not in (None, 1.0):
            generation.do_sample = True
            return


def reload_model(folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """Read a model folder as it is, on the CPU, in evaluation mode; auto keeps the stored dtype. Raises ModelError."""
    try:
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = AutoModelForImageTextToText if _is_multimodal(hf_config) else AutoModelForCausalLM
        model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{folder}: the model in it cannot be read ({first_line(error)}); do not use it") from error
    refuse_meta(model, folder)
    apply_depths(model, None, folder, trainable=False)
    return model.eval()
