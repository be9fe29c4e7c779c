"""Loading a model for a run: configuration, formats, weights, vocabulary, adapters, in that order.

Decisions that change numbers (formats, attention, positions, vocabulary) are logged in one line each and returned as
notes. Knows no data, no objective and no trainer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import PeftModel
from transformers import set_seed

from llamafactory.config.availability import refuse_unavailable
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.errors import ConfigError, ModelError
from llamafactory.logs import get_logger, notice
from llamafactory.models import build
from llamafactory.models.adapters import ADAPTERS
from llamafactory.models.attach import adapter_folders, attach_given
from llamafactory.models.attention import choose_attention, find_device
from llamafactory.models.compat import calm_libraries
from llamafactory.models.compute import add_checkpoints, add_kernels, attention_kernel
from llamafactory.models.dtype import DtypePlan, cast_parameters, plan_dtype
from llamafactory.models.hub import fetch, is_local
from llamafactory.models.inspect import count_parameters, parameter_status
from llamafactory.models.kernels import check_kernels
from llamafactory.models.kernels.mixture_of_depths import apply_depths, is_marked
from llamafactory.models.quantization import quantization_of
from llamafactory.models.quantization._choose import choose_quantizer
from llamafactory.models.record import BaseRecord, fingerprint, read_record
from llamafactory.models.rope import scale_rope, set_rope
from llamafactory.models.router import set_router_loss
from llamafactory.models.upcast import upcast_head_output, upcast_norms
from llamafactory.models.value_head import (
    VALUE_HEAD_FILE,
    StoredHead,
    attach_value_head,
    freeze_for_ranking,
    read_value_head,
)
from llamafactory.models.vocab import NewRows, grow_vocab, num_rows, padded_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from llamafactory.config.run import RunConfig
    from llamafactory.models.tokenizer import TokenizerBundle

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to train or to answer.

    dtype: format of the frozen weights, and of computation. record: what an adapter saved from this model must remember
    about its base. notes: what was decided, one sentence each.
    """

    model: PreTrainedModel | PeftModel
    dtype: torch.dtype
    record: BaseRecord
    notes: tuple[str, ...]


def load_model(
    config: RunConfig,
    bundle: TokenizerBundle,
    *,
    trainable: bool,
    merge: bool = True,
    head: Literal["lm", "value", "both"] = "lm",
) -> LoadedModel:
    """Load the model of a run and choose what learns.

    Training: sets the global seed, so that new rows, adapters and random weights are the same for the same seed.
    Inference: adapters are merged, nothing requires gradients, evaluation mode. merge: False leaves the last adapter
    unmerged at inference, for whoever wants to observe it first.

    head: what the model shall answer. value: a value head is attached and the vocabulary projection, which then never
    runs, is frozen. both: a value head is attached. A head stored with the last adapter, or else with the base, is
    taken up; training makes a new one where there is none. Raises ConfigError, ModelError.
    """
    _refuse(config)
    if trainable:
        check_kernels(config)
    calm_libraries()
    if trainable:
        set_seed(config.training.seed)
    notes: list[str] = []
    base = load_base(config, bundle, notes, trainable=trainable)
    if merge or trainable:
        part = ADAPTERS.load(config.finetuning.finetuning_type)
        model = part.apply(base.model, config, trainable=trainable, vocab_grown=base.vocab_grown)
    else:
        model = attach_given(base.model, config)
    record = _complete(base.record, model, config, trainable=trainable)
    if trainable:
        cast_parameters(model, base.plan)
    if head != "lm":
        _add_value_head(model, config, base.folder, notes, trainable=trainable)
    if head == "value":
        freeze_for_ranking(model)
        _notice_projection(config)
    if trainable:
        _prepare_training(model, config, notes)
    else:
        _prepare_inference(model, config)
    for note in notes:
        logger.info(note)
    if config.model.print_param_status:
        for line in parameter_status(model):
            logger.info(line)
    return LoadedModel(model, base.plan.frozen, record, tuple(notes))


def load_reference(config: RunConfig, bundle: TokenizerBundle) -> PreTrainedModel | None:
    """Load `ref_model` with `ref_model_adapters` merged, in the formats of training; None when the run names none.

    Raises ConfigError, ModelError.
    """
    preference = config.preference
    if not config.uses_reference or preference.ref_model is None:
        return None
    named: dict[str, object] = {
        "model_name_or_path": preference.ref_model,
        "adapter_name_or_path": preference.ref_model_adapters,
        "adapter_folder": None,
        "train_from_scratch": False,
    }
    other = dataclasses.replace(
        config,
        model=config.model.model_copy(update=named),
        quantization=config.quantization.model_copy(
            update={"quantization_bit": preference.ref_model_quantization_bit, "quantization_aware": False}
        ),
        finetuning=config.finetuning.model_copy(update={"finetuning_type": "lora"}),
    )
    base = load_base(other, bundle, [], trainable=True)
    model = ADAPTERS.load("lora").apply(base.model, other, trainable=False, vocab_grown=False)
    cast_parameters(model.requires_grad_(False), base.plan)
    logger.info("reference model: %s", preference.ref_model)
    return model


@dataclass(frozen=True, slots=True)
class Base:
    """A base model before any adapter."""

    folder: Path
    model: PreTrainedModel
    plan: DtypePlan
    record: BaseRecord
    vocab_grown: bool


def load_base(config: RunConfig, bundle: TokenizerBundle, notes: list[str], *, trainable: bool) -> Base:
    """Load the base with its formats, attention, positions and vocabulary settled; appends to `notes`."""
    earlier = _earlier_record(config)
    folder, hf_config = build.read_config(config)
    plan = plan_dtype(config, build.stored_dtype(hf_config), trainable=trainable)
    notes.append(plan.describe(trainable=trainable))
    positions = _stretch(config, hf_config, earlier, notes, trainable=trainable)
    if trainable and config.compute.moe_aux_loss_coef:
        set_router_loss(hf_config, config.compute.moe_aux_loss_coef)
    attention, remark = choose_attention(config.compute.flash_attn, hf_config, find_device(config, plan.load))
    if remark:
        logger.warning(remark)
    if trainable:
        attention = attention_kernel(config, hf_config, notes) or attention
    if not config.model.low_cpu_mem_usage:
        notes.append("low_cpu_mem_usage: false has no effect, transformers 5 always loads weights one by one")
    quantizer = choose_quantizer(config, hf_config, dtype=plan.frozen, trainable=trainable)
    if quantizer is not None:
        notes.append(quantizer.note)
    model = build.build_weights(
        config, folder, hf_config, attention=attention, dtype=plan.load, trainable=trainable, quantizer=quantizer
    )
    if note := apply_depths(
        model,
        config.model.mixture_of_depths,
        None if config.model.train_from_scratch else folder,
        trainable=trainable,
    ):
        notes.append(note)
    grown = _fit_vocab(model, config, bundle, earlier, trainable=trainable)
    record = BaseRecord(
        base_model=_portable_name(config),
        vocab_size=num_rows(model),
        base_fingerprint="" if config.model.train_from_scratch or _is_stored(model) else fingerprint(folder),
        added_tokens=_added_tokens(bundle, earlier),
        rope_parameters=positions[0],
        max_position_embeddings=positions[1],
        quantization=_in_words(model),
    )
    _compare_base(record, earlier, notes)
    return Base(folder, model, plan, record, grown)


def stored_value_head(config: RunConfig) -> StoredHead | None:
    """The head that belongs to the configured model, None without one. Raises ModelError for a reward model without."""
    base = fetch(config.model.model_name_or_path or "", config.hub, key="model_name_or_path")
    stored = find_value_head(config, base)
    if stored is None and config.finetuning.stage == "rm":
        raise ModelError(_no_head(config))
    return stored


def _no_head(config: RunConfig) -> str:
    return (
        f"model_name_or_path: {config.model.model_name_or_path!r} has no {VALUE_HEAD_FILE}, neither with its last "
        "adapter nor with the base, so it is not a reward model and cannot score; give a model trained with stage: rm"
    )


def find_value_head(config: RunConfig, base: Path) -> StoredHead | None:
    """The head stored with the last given adapter, or else in the folder of the base model."""
    adapters = adapter_folders(config)[-1:] if config.model.adapter_name_or_path else []
    for folder in (*adapters, base):
        stored = read_value_head(folder, allow_pickle=config.hub.allow_pickle_weights)
        if stored is not None:
            return stored
    return None


def _refuse(config: RunConfig) -> None:
    """Raise ConfigError for parts that do not exist yet, and for adapters without the method that can read them."""
    refuse_unavailable(config, config.command)
    if config.finetuning.finetuning_type not in ADAPTER_METHODS and config.model.adapter_name_or_path:
        raise ConfigError(
            f"adapter_name_or_path: adapters need finetuning_type: {', '.join(ADAPTER_METHODS)}, "
            f"got {config.finetuning.finetuning_type}; "
            "remove one of the two"
        )
    if config.model.train_from_scratch and config.finetuning.finetuning_type in ADAPTER_METHODS:
        raise ConfigError(
            "train_from_scratch: the random base of an adapter is not saved, so the adapter could never be used; "
            "set finetuning_type: full"
        )


def _earlier_record(config: RunConfig) -> BaseRecord | None:
    """The record of the last given adapter that has one."""
    if not config.model.adapter_name_or_path:
        return None
    records = [read_record(folder) for folder in adapter_folders(config)]
    return next((record for record in reversed(records) if record is not None), None)


def _stretch(
    config: RunConfig, hf_config: PretrainedConfig, earlier: BaseRecord | None, notes: list[str], *, trainable: bool
) -> tuple[dict[str, object] | None, int | None]:
    """Scale rotary positions as an adapter remembers them, else as the options say; returns what was set."""
    if earlier is not None and earlier.rope_parameters and earlier.max_position_embeddings:
        set_rope(hf_config, earlier.rope_parameters, earlier.max_position_embeddings)
        notes.append(f"positions: as the adapter was trained, up to {earlier.max_position_embeddings}")
        return earlier.rope_parameters, earlier.max_position_embeddings
    if config.model.rope_scaling is None:
        return None, None
    change = scale_rope(config.model.rope_scaling, hf_config, cutoff_len=config.data.cutoff_len, trainable=trainable)
    if change is None:
        notes.append(f"rope_scaling: {config.model.rope_scaling} has no effect, the model's own positions suffice")
        return None, None
    set_rope(hf_config, change.rope_parameters, change.max_position_embeddings)
    notes.append(change.line)
    return change.rope_parameters, change.max_position_embeddings


def _fit_vocab(
    model: PreTrainedModel, config: RunConfig, bundle: TokenizerBundle, earlier: BaseRecord | None, *, trainable: bool
) -> bool:
    """Grow the embeddings if the tokenizer asks for it; True when new tokens must learn their rows."""
    tokens, rows = len(bundle.tokenizer), num_rows(model)
    if earlier is not None and bundle.added_tokens and tokens > earlier.vocab_size:
        raise ModelError(
            f"add_tokens: the given adapter was trained with {earlier.vocab_size} rows of vocabulary, {tokens} are "
            "needed now; export the merged model first and add tokens to that"
        )
    covered = max(rows, earlier.vocab_size if earlier is not None else 0)
    if tokens > covered and trainable and not bundle.must_resize and not config.model.adapter_name_or_path:
        raise ModelError(
            f"the tokenizer holds {tokens} tokens but the model has {rows} rows of vocabulary; set resize_vocab: true, "
            "or use the tokenizer that belongs to the model"
        )
    if not bundle.must_resize:
        return False
    wanted = max(rows, padded_rows(tokens)) if tokens > rows and earlier is None else rows
    grown = grow_vocab(model, wanted, _new_rows(config, bundle))
    return grown or bool(bundle.added_tokens)


def _new_rows(config: RunConfig, bundle: TokenizerBundle) -> NewRows:
    ids = {token: bundle.tokenizer.convert_tokens_to_ids(token) for token in bundle.added_tokens}
    described = {
        ids[token]: tuple(bundle.tokenizer(text, add_special_tokens=False)["input_ids"])
        for token, text in bundle.descriptions.items()
        if token in ids
    }
    return NewRows(tuple(ids.values()), described, config.vocab.init_special_tokens, config.training.seed)


def _portable_name(config: RunConfig) -> str:
    """The base model's name as an artefact remembers it: hub ids as they are, folders as absolute paths."""
    name = config.model.model_name_or_path or ""
    return str(Path(name).expanduser().resolve()) if is_local(name) else name


def _added_tokens(bundle: TokenizerBundle, earlier: BaseRecord | None) -> tuple[tuple[str, str], ...]:
    known = earlier.added_tokens if earlier is not None else ()
    special = {entry.content for entry in bundle.tokenizer.added_tokens_decoder.values() if entry.special}
    return known + tuple((token, "special" if token in special else "normal") for token in bundle.added_tokens)


def _is_stored(model: PreTrainedModel) -> bool:
    """True for weights stored quantized: an adapter on them is merged into others, the plain ones."""
    quantization = quantization_of(model)
    return quantization is not None and quantization.stored


def _in_words(model: PreTrainedModel) -> str:
    quantization = quantization_of(model)
    return quantization.describe() if quantization is not None else ""


def _compare_base(record: BaseRecord, earlier: BaseRecord | None, notes: list[str]) -> None:
    if earlier is not None and earlier.quantization != record.quantization:
        then, now = (found.quantization or "not quantized" for found in (earlier, record))
        notes.append(f"the adapter was trained on a base held as {then}, now it is {now}: answers differ a little")
    prints = {record.base_fingerprint, earlier.base_fingerprint if earlier is not None else ""} - {""}
    if len(prints) > 1:
        logger.warning(
            "model_name_or_path: these are not the weights the adapter was trained on (%s then, %s now); "
            "results may be worse",
            earlier.base_model if earlier is not None else "",
            record.base_model,
        )


def _complete(
    record: BaseRecord, model: PreTrainedModel | PeftModel, config: RunConfig, *, trainable: bool
) -> BaseRecord:
    """Fill in what is known after the adapters are in place, and tell PEFT the base's name."""
    given = config.model.adapter_name_or_path
    resumed = bool(given) and trainable and not config.lora.create_new_adapter
    if isinstance(model, PeftModel):
        for options in model.peft_config.values():
            options.base_model_name_or_path = record.base_model
        base = model.get_base_model()
    else:
        base = model
    merged = tuple(_absolute(name, config) for name in (given[:-1] if resumed else given))
    return dataclasses.replace(record, vocab_size=num_rows(base), merged_adapters=merged)


def _absolute(name: str, config: RunConfig) -> str:
    if not is_local(name):
        return name
    folder = Path(name).expanduser().resolve()
    return str(folder / config.model.adapter_folder) if config.model.adapter_folder else str(folder)


def _add_value_head(
    model: PreTrainedModel | PeftModel, config: RunConfig, base: Path, notes: list[str], *, trainable: bool
) -> None:
    """Attach the head stored with the last adapter, or else with the base; a new one when training finds none."""
    stored = None if config.model.train_from_scratch else find_value_head(config, base)
    if stored is None and not trainable:
        raise ModelError(_no_head(config))
    attach_value_head(model, stored, trainable=trainable)
    notes.append("value head: new, random weights" if stored is None else f"value head: from {stored.folder}")


def _notice_projection(config: RunConfig) -> None:
    """Say so when options ask to train the vocabulary projection, which never runs."""
    given = [
        key
        for key, names in (
            ("additional_target", config.lora.additional_target),
            ("lora_target", config.lora.lora_target),
            ("freeze_extra_modules", config.freeze.freeze_extra_modules),
        )
        if "lm_head" in names
    ]
    if given:
        notice(f"{given[0]}: lm_head has no effect, a reward model never runs its vocabulary projection")


def _prepare_training(model: PreTrainedModel | PeftModel, config: RunConfig, notes: list[str]) -> None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if config.compute.upcast_layernorm:
        notes.append(f"upcast_layernorm: {upcast_norms(base)} norm weights are float32")
    elif quantization_of(base) is not None and base.dtype != torch.float32:
        notice("upcast_layernorm: true costs little and steadies training on a quantized base")
    if config.compute.upcast_lmhead_output:
        upcast_head_output(base)
    count = count_parameters(model)
    notes.append(count.line())
    if count.trainable == 0:
        raise ModelError(
            f"finetuning_type: {config.finetuning.finetuning_type} leaves no parameter to train with these options; "
            "name layers or modules that exist, or unfreeze parts of the model"
        )
    add_checkpoints(base, config, notes)
    add_kernels(model, config, notes)
    base.config.use_cache = False
    model.train()


def _prepare_inference(model: PreTrainedModel | PeftModel, config: RunConfig) -> None:
    model.requires_grad_(False)
    model.config.use_cache = config.compute.use_kv_cache and not is_marked(model.config)
    model.eval()
