"""From a configuration, a model and data sets to a trainer that is ready to train.

The only module of the room that puts the others together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from peft import PeftModel
from transformers import (
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from llamafactory.config.run import RunConfig
from llamafactory.data.batching import LengthGroupedSampler
from llamafactory.data.collate import Collator
from llamafactory.data.kinds import kind_of
from llamafactory.data.pairs import collator_for
from llamafactory.data.pipeline import Datasets
from llamafactory.data.prompts import PromptCollator
from llamafactory.errors import ConfigError
from llamafactory.logs import get_logger, notice
from llamafactory.models.quantization import measured, place
from llamafactory.models.value_head import detached, head_state, save_value_head
from llamafactory.objectives import Objective
from llamafactory.optim import build_optimizer
from llamafactory.training import dropout
from llamafactory.training.balance import balance_line
from llamafactory.training.batch_terms import build_batch_terms
from llamafactory.training.callbacks.early_stopping import EarlyStopping
from llamafactory.training.callbacks.log_file import LogFile
from llamafactory.training.callbacks.progress import ProgressLine
from llamafactory.training.guard import NonFiniteGuard
from llamafactory.training.isolation import check_isolation
from llamafactory.training.preflight import check_training
from llamafactory.training.reference import build_reference
from llamafactory.training.samplers import EpochSampler, FixedSampler, RoundSampler, ShuffledSampler
from llamafactory.training.scoring import MAX_LOGITS, Scorer, SequenceScorer, TokenScorer
from llamafactory.training.sharing import choose_sharing
from llamafactory.training.stored_reference import build_store, stores_reference
from llamafactory.training.trainer import Trainer

Layout = Literal["padded", "flat"]
logger = get_logger(__name__)


def build_trainer(
    config: RunConfig,
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Datasets,
    objective: Objective,
    args: TrainingArguments | None = None,
    save_weights: Callable[[Path], None] | None = None,
    reference: PreTrainedModel | None = None,
) -> Trainer:
    """Build the trainer; nothing is trained yet.

    args: from `preflight.check_training`, when it has been called already. reference: a model to compare with; left
    out, an objective that needs one compares with `model` as it is now.
    save_weights: writes a complete artefact of the live model into a folder, used for checkpoints and at the end; left
    out, weights and tokenizer are saved as transformers and PEFT do. Raises ConfigError, MissingPackageError.
    """
    args = check_training(config) if args is None else args
    evaluation = _evaluation_sets(config, datasets)
    if datasets.train is not None and not hasattr(datasets.train, "__len__") and config.training.max_steps <= 0:
        raise ConfigError(
            "max_steps: a stream has no length, so the run would not know its end; set max_steps to a number of updates"
        )
    layout = choose_layout(config, model)
    if config.packs or layout == "flat":
        check_isolation(model, flat=layout == "flat")
    if config.finetuning.stage in dropout.STAGES and dropout.switch_off_dropout(model) and config.lora.lora_dropout:
        notice(
            f"{config.place('lora_dropout')}: lora_dropout: {config.lora.lora_dropout:g} has no effect in stage "
            f"{config.finetuning.stage}, which compares answers without random masks"
        )
    collate = _collator(config, model, tokenizer, layout)
    free = reference is None and isinstance(model, PeftModel)
    stored = stores_reference(config, datasets, args, free=free)
    if stored:
        policy = build_reference(place(model, args.device), reference, args, lasting=False)
        datasets = build_store(config, args, policy, reference or model, collate).add_to(datasets)
        evaluation = _evaluation_sets(config, datasets)
        reference = None
    scorer = _scorer(objective, model, args, reference, stored=stored)
    with measured(model):
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=datasets.train,
            eval_dataset=evaluation,
            callbacks=_callbacks(config),
            objective=objective,
            scorer=scorer,
            preparation=build_batch_terms(config, scorer, objective),
            order=_in_rounds(config, args, training_order(config, args, datasets.train, layout)),
            guard=NonFiniteGuard(_describe(config, model, args)),
            optimizer_factory=partial(build_optimizer, config=config, args=args),
            save_weights=save_weights or _plain_saver(model, tokenizer),
        )
    trainer.remove_callback(PrinterCallback)
    if isinstance(datasets.train, Dataset) and "desirable" in datasets.train.column_names:
        weights = (config.preference.kto_chosen_weight, config.preference.kto_rejected_weight)
        logger.info(balance_line(datasets.train["desirable"][:], *weights))
    return trainer


def choose_layout(config: RunConfig, model: PreTrainedModel | PeftModel) -> Layout:
    """`batch_layout`; auto is flat where attention is a variable-length kernel (flash), padded elsewhere."""
    wanted = config.data.batch_layout
    if wanted != "auto":
        return wanted
    attention = str(getattr(model.config.get_text_config(), "_attn_implementation", ""))
    return "flat" if "flash" in attention else "padded"


def training_order(config: RunConfig, args: TrainingArguments, dataset: Any, layout: Layout) -> EpochSampler | None:
    """The order of examples: file order, like lengths together, or shuffled; None for a stream, which has its own."""
    if dataset is None or not hasattr(dataset, "__len__"):
        return None
    strategy = config.training.extra.get("train_sampling_strategy")
    if config.finetuning.disable_shuffling or strategy == "sequential":
        return FixedSampler(range(len(dataset)))
    seed = config.training.seed if config.training.data_seed is None else config.training.data_seed
    lengths_known = "length" in getattr(dataset, "column_names", ())
    if lengths_known and layout == "padded" and not config.packs and strategy != "random":
        return LengthGroupedSampler(dataset["length"][:], _global_batch_size(args), seed=seed)
    return ShuffledSampler(len(dataset), seed)


def _global_batch_size(args: TrainingArguments) -> int:
    """Examples of one update."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _in_rounds(config: RunConfig, args: TrainingArguments, order: EpochSampler | None) -> EpochSampler | None:
    """Prompts come in rounds: answered once, learned from `ppo_epochs` times."""
    if order is None or kind_of(config.finetuning.stage) != "prompt":
        return order
    round_size = config.ppo.ppo_buffer_size * _global_batch_size(args)
    return RoundSampler(order, round_size=round_size, num_passes=config.ppo.ppo_epochs)


def _scorer(
    objective: Objective,
    model: PreTrainedModel | PeftModel,
    args: TrainingArguments,
    separate: PreTrainedModel | None,
    *,
    stored: bool,
) -> Scorer:
    if objective.head == "value":
        return SequenceScorer()
    reference = build_reference(model, separate, args) if objective.needs_reference and not stored else None
    # Sharding libraries gather weights inside the model's own forward alone, so chunks cannot call the head again.
    sharded = bool(args.fsdp or args.deepspeed)
    return TokenScorer(objective, reference, max_logits=sys.maxsize if sharded else MAX_LOGITS)


def _collator(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> DataCollator:
    kind = kind_of(config.finetuning.stage)
    if kind == "prompt":
        return PromptCollator(tokenizer.pad_token_id or 0)
    rows = Collator(
        pad_token_id=tokenizer.pad_token_id or 0,
        layout=layout,
        pad_to_multiple_of=8,
        ignore_pad_token_for_loss=config.data.ignore_pad_token_for_loss,
    )
    shares = kind == "preference" and layout == "padded"
    return collator_for(kind, rows, choose_sharing(model, config.data.cutoff_len) if shares else None)


def _evaluation_sets(config: RunConfig, datasets: Datasets) -> Any:
    """None, the only set, or the sets by name. Raises ConfigError when an evaluation is asked for without data."""
    if not datasets.evals and config.training.eval_strategy != "no":
        raise ConfigError(
            f"{config.place('eval_strategy')}: eval_strategy: {config.training.eval_strategy} needs evaluation data, "
            "and this run has none; set eval_dataset or val_size, or eval_strategy: no"
        )
    if config.finetuning.early_stopping_steps and config.training.eval_strategy == "no":
        raise ConfigError(
            f"{config.place('early_stopping_steps')}: early_stopping_steps counts evaluations, and eval_strategy is "
            "no; set eval_strategy: steps or epoch"
        )
    if not datasets.evals:
        return None
    return dict(datasets.evals) if len(datasets.evals) > 1 else next(iter(datasets.evals.values()))


def _callbacks(config: RunConfig) -> list[TrainerCallback]:
    bar = False if config.training.disable_tqdm else None
    found: list[TrainerCallback] = [LogFile(Path(str(config.training.output_dir))), ProgressLine(live=bar)]
    if config.finetuning.early_stopping_steps:
        found.append(EarlyStopping(config.finetuning.early_stopping_steps))
    return found


def _plain_saver(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        with detached(model) as head:
            model.save_pretrained(folder)
        if head is not None:
            save_value_head(head_state(head), folder)
        tokenizer.save_pretrained(folder)

    return save


def _describe(config: RunConfig, model: PreTrainedModel | PeftModel, args: TrainingArguments) -> str:
    dtypes = {
        str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters() if parameter.requires_grad
    }
    return f"trained weights {'/'.join(sorted(dtypes))}, precision {config.precision}, device {args.device}"
