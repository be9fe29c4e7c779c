"""LoRA (Hu et al. 2021, arXiv:2106.09685), with rsLoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353), through PEFT.

Several given adapters: all but the last are merged into the base and the last goes on learning; with
`create_new_adapter` and at inference all are merged. Knows no optimizer (LoRA+ groups are made elsewhere).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model

from llamafactory.errors import ConfigError, ModelError, did_you_mean
from llamafactory.logs import get_logger, notice
from llamafactory.models.adapters import freeze
from llamafactory.models.families import family_facts
from llamafactory.models.hub import fetch
from llamafactory.models.merge import merge_adapters
from llamafactory.models.modules import find_layers, frozen_parts, has_fused_experts, has_part, linear_modules
from llamafactory.models.record import read_record
from llamafactory.models.safetensors_file import folder_shapes, tensor_shapes
from llamafactory.models.vocab import NewRows, grow_vocab, num_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

logger = get_logger(__name__)


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters; only adapter parameters require gradients afterwards.

    Returns the model itself when all adapters were merged, else a PeftModel around it. Raises ConfigError, ModelError.
    """
    model.requires_grad_(False)
    folders = adapter_folders(config)
    resume = bool(folders) and trainable and not config.lora.create_new_adapter
    for folder in folders[:-1] if resume else folders:
        model = merge_adapters(attach(model, folder, trainable=False))
        logger.info("merged adapter %s", folder)
    if not trainable:
        return model
    if resume:
        notice(f"adapter_name_or_path: {folders[-1]} goes on learning with its own rank, alpha and targets")
        return attach(model, folders[-1], trainable=True, full_precision=not config.finetuning.pure_bf16)
    return _create(model, config, vocab_grown=vocab_grown)


def attach_given(model: PreTrainedModel, config: RunConfig) -> PreTrainedModel | PeftModel:
    """Merge all given adapters but the last, and attach that one for inference without merging it."""
    folders = adapter_folders(config)
    for folder in folders[:-1]:
        model = merge_adapters(attach(model, folder, trainable=False))
    return attach(model, folders[-1], trainable=False) if folders else model


def adapter_folders(config: RunConfig) -> list[Path]:
    """Local folders of the given adapters, in order, downloaded and checked."""
    folders = [
        fetch(name, config.hub, key="adapter_name_or_path", folder=config.model.adapter_folder)
        for name in config.model.adapter_name_or_path
    ]
    for folder in folders:
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"adapter_name_or_path: {folder} holds no adapter_config.json, so it is not an adapter; give a full "
                "model as model_name_or_path"
            )
    return folders


def attach(model: PreTrainedModel, folder: Path, *, trainable: bool, full_precision: bool = True) -> PeftModel:
    """Load the adapter in `folder` onto `model`, growing its vocabulary to the adapter's.

    full_precision: adapter weights in fp32 on a narrower base. Raises ModelError, CheckpointError for a damaged file.
    """
    folder_shapes(folder)  # a damaged file is told by name
    grow_vocab(model, _saved_rows(model, folder), NewRows())
    try:
        wrapped = PeftModel.from_pretrained(
            model, str(folder), is_trainable=trainable, autocast_adapter_dtype=full_precision, local_files_only=True
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(_mismatch(folder, model, error)) from error
    _check_all_used(wrapped, folder)
    return wrapped


def _saved_rows(model: PreTrainedModel, folder: Path) -> int:
    """Rows of vocabulary an adapter was trained with: as recorded, else as its saved embedding shows."""
    record = read_record(folder)
    if record is not None:
        return record.vocab_size
    file = folder / "adapter_model.safetensors"
    shapes = tensor_shapes(file) if file.is_file() else {}
    stems = [f"base_model.model.{name}" for name in _embedding_paths(model)]
    return max(shapes.get(f"{stem}{end}", (0,))[0] for stem in stems for end in (".weight", ".base_layer.weight"))


def _mismatch(folder: Path, model: PreTrainedModel, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
    return (
        f"adapter_name_or_path: {folder} does not fit this {model.config.model_type} model with {num_rows(model)} rows "
        f"of vocabulary ({detail}); give the base model it was trained on"
    )


def _check_all_used(model: PeftModel, folder: Path) -> None:
    """Raise ModelError unless every tensor of the adapter file found its place in the model."""
    from peft import get_peft_model_state_dict

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    known = {*get_peft_model_state_dict(model, save_embedding_layers=False), *model.state_dict()}
    # PEFT writes further copies of embeddings under names of its own; the ones that count are in `known`.
    lost = sorted(name for name in set(tensor_shapes(file)) - known if ".modules_to_save." not in name)
    if lost:
        raise ModelError(
            f"adapter_name_or_path: {folder} holds {len(lost)} tensors this model has no place for, such as {lost[0]}; "
            "give the base model it was trained on"
        )


def _create(model: PreTrainedModel, config: RunConfig, *, vocab_grown: bool) -> PeftModel:
    saved = modules_to_save(model, config, vocab_grown=vocab_grown)
    targets = [name for name in target_modules(model, config) if name.rsplit(".", 1)[-1] not in saved]
    options = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora.lora_rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.lora_dropout,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
        target_modules=targets,
        modules_to_save=list(saved) or None,
        ensure_weight_tying=_tied_head(model) is not None and _embedding_names(model)[0] in saved,
    )
    return get_peft_model(model, options, autocast_adapter_dtype=not config.finetuning.pure_bf16)


def target_modules(model: PreTrainedModel, config: RunConfig) -> list[str]:
    """Module names for PEFT: last components where that is unambiguous, full names otherwise. Raises ConfigError."""
    wanted = config.lora.lora_target
    facts = family_facts(model.config)
    if "all" in wanted:
        names = [name for name in linear_modules(model) if not has_part(name, facts.projector + facts.lora_excluded)]
        if has_fused_experts(model):
            notice("lora_target: all does not reach the fused expert weights of this model; attention and others learn")
    else:
        names = _named_modules(model, wanted)
    frozen = frozen_parts(model, config.finetuning) + facts.lora_excluded
    kept = [name for name in names if not has_part(name, frozen)]
    if config.finetuning.use_llama_pro:
        kept = _expanded_only(model, config, kept)
    if not kept:
        raise ConfigError("lora_target: no module is left that may learn; name other modules or unfreeze parts")
    if facts.is_composite or config.finetuning.use_llama_pro:
        return kept
    return sorted(wanted) if "all" not in wanted else sorted({name.rsplit(".", 1)[-1] for name in kept})


def _named_modules(model: PreTrainedModel, wanted: tuple[str, ...]) -> list[str]:
    modules = dict(model.named_modules())
    found: list[str] = []
    head = _tied_head(model)
    shared = [name for name in wanted if head is not None and name in (head, *_embedding_names(model))]
    if shared:
        raise ConfigError(
            f"lora_target: {shared[0]!r} is the input embedding and the output head in one weight, which a low-rank "
            "adapter cannot change for one alone; use additional_target: embed_tokens"
        )
    for target in wanted:
        matches = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not matches:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model)})
            raise ConfigError(
                f"lora_target: the model has no module {target!r} (linear modules: {', '.join(known)})"
                f"{did_you_mean(target, known)}"
            )
        found.extend(matches)
        unfit = next((name for name in matches if not hasattr(modules[name], "weight")), None)
        if unfit is not None:
            inner = sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model) if name.startswith(f"{unfit}.")})
            raise ConfigError(
                f"lora_target: {target!r} is a {type(modules[unfit]).__name__}, not a layer with a weight; "
                f"name the layers inside it ({', '.join(inner)})"
            )
    return found


def _expanded_only(model: PreTrainedModel, config: RunConfig, names: list[str]) -> list[str]:
    layers = find_layers(model)
    chosen = freeze.chosen_layers(layers.count, config.freeze.freeze_trainable_layers, llama_pro=True)
    return [name for name in names if layers.index_of(name) in chosen]


def modules_to_save(model: PreTrainedModel, config: RunConfig, *, vocab_grown: bool) -> tuple[str, ...]:
    """Modules trained in full: additional_target, and the embeddings when the vocabulary grew. Raises ConfigError."""
    wanted = list(config.lora.additional_target)
    modules = [name for name, _ in model.named_modules()]
    known = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name[-1].isdigit()})
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise ConfigError(
                f"additional_target: the model has no module {target!r} (choose from {', '.join(known)})"
                f"{did_you_mean(target, known)}"
            )
    embeddings = _embedding_names(model)
    head = _tied_head(model)
    if head in wanted:  # one weight under two names: keep the name that PEFT ties the other to
        wanted = [name for name in dict.fromkeys([*wanted, *embeddings]) if name != head]
    if vocab_grown and not set(embeddings) <= set(wanted):
        clash = set(embeddings) & set(config.lora.lora_target)
        if clash:
            raise ConfigError(
                f"lora_target: {sorted(clash)[0]!r} must be trained in full because the vocabulary grew; "
                "remove it from lora_target"
            )
        notice(f"the vocabulary grew: {', '.join(embeddings)} are trained in full and saved with the adapter")
        wanted += [name for name in embeddings if name not in wanted]
    return tuple(wanted)


def _embedding_paths(model: PreTrainedModel) -> list[str]:
    """Full names of the input embedding and, unless tied to it, the output embedding."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is inputs.weight
    return [name for name, module in model.named_modules() if module is inputs or (module is head and not tied)]


def _embedding_names(model: PreTrainedModel) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name in _embedding_paths(model)]


def _tied_head(model: PreTrainedModel) -> str | None:
    """Last name component of the output embedding when it shares its weight with the input embedding."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not inputs.weight:
        return None
    return next(name for name, module in model.named_modules() if module is head).rsplit(".", 1)[-1]
