"""What all methods of PEFT share: earlier adapters are merged, the last goes on learning, or a new one is made.

Several given adapters: all but the last are merged into the base and the last goes on learning; with
`create_new_adapter` and at inference all are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel, get_peft_model

from llamafactory.logs import get_logger, notice
from llamafactory.models.attach import adapter_folders, attach, attach_given
from llamafactory.models.merge import merge_adapters
from llamafactory.models.quantization import quantization_of
from llamafactory.models.targets import embedding_names, modules_to_save, target_modules, tied_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig


logger = get_logger(__name__)

Options = Callable[["PreTrainedModel", "RunConfig", list[str]], PeftConfig]
"""Builds PEFT's options for the modules that are named."""


def apply_adapter(
    model: PreTrainedModel, config: RunConfig, options: Options, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters; only adapter parameters require gradients afterwards.

    Returns the model itself when all adapters were merged, else a PeftModel around it: also at inference on a quantized
    base, which nothing can be merged into. Raises ConfigError, ModelError.
    """
    model.requires_grad_(False)
    folders = adapter_folders(config)
    if folders and not trainable and quantization_of(model) is not None:
        return attach_given(model, config)
    resume = bool(folders) and trainable and not config.lora.create_new_adapter
    for folder in folders[:-1] if resume else folders:
        model = merge_adapters(attach(model, folder, trainable=False))
        logger.info("merged adapter %s", folder)
    if not trainable:
        return model
    if resume:
        notice(f"adapter_name_or_path: {folders[-1]} goes on learning with its own rank, alpha and targets")
        return attach(model, folders[-1], trainable=True, full_precision=not config.finetuning.pure_bf16)
    return _create(model, config, options, vocab_grown=vocab_grown)


def _create(model: PreTrainedModel, config: RunConfig, options: Options, *, vocab_grown: bool) -> PeftModel:
    saved = modules_to_save(model, config, vocab_grown=vocab_grown)
    key = "oft_target" if config.finetuning.finetuning_type == "oft" else "lora_target"
    told = not config.lora.lora_target_parameters
    named = target_modules(model, config, key=key, tells_experts=told)
    chosen = options(model, config, [name for name in named if name.rsplit(".", 1)[-1] not in saved])
    chosen.modules_to_save = list(saved) or None
    chosen.ensure_weight_tying = tied_head(model) is not None and embedding_names(model)[0] in saved
    return get_peft_model(model, chosen, autocast_adapter_dtype=not config.finetuning.pure_bf16)
