"""The training loop: steps, batches, schedule, evaluation, saving, reporting.

Holds every key of transformers' training arguments: those our code reads as fields, the others in `extra`. Does not
know the Trainer; `to_hf_kwargs` hands the keys on.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llamafactory.config.section import (
    TRAIN,
    CommaList,
    JsonMapping,
    JsonMappingOrPath,
    NonNegativeReal,
    Positive,
    Section,
    Share,
    Whole,
    Words,
    option,
)


def _whole_from_one(value: float) -> float:
    """A count of updates is whole; a share of all is below 1."""
    if value < 1:
        return value
    if not float(value).is_integer():
        raise ValueError(f"got {value:g}, expected a whole number of updates, or a share of all below 1")
    return int(value)


Steps = Annotated[float, Field(ge=0), AfterValidator(_whole_from_one)]
Strategy = Literal["no", "steps", "epoch"]
OURS_ALONE = frozenset({"overwrite_output_dir", "extra"})


def _tokens_seen(value: object) -> object:
    return {True: "all", False: "no"}.get(value, value) if isinstance(value, bool) else value


class TrainingConfig(Section):
    """Keys of transformers' training arguments; steps below 1 are shares of all steps."""

    title: ClassVar[str] = "Training"
    commands: ClassVar[tuple[str, ...]] = TRAIN

    output_dir: str | None = option(None, "Folder for weights, checkpoints and logs of the run.")
    overwrite_output_dir: bool = option(False, "Start anew in output_dir instead of resuming from its last checkpoint.")
    resume_from_checkpoint: bool | str | None = option(
        None, "Checkpoint folder to go on from; true takes the newest, false starts anew."
    )
    do_train: bool = option(False, "Train.")
    do_eval: bool = option(False, "Evaluate at the end; on by itself when eval_strategy is not no.")
    do_predict: bool = option(False, "Write predictions for the evaluation data.")
    predict_with_generate: bool = option(False, "Predict by generating text instead of scoring the given answers.")

    per_device_train_batch_size: Positive = option(8, "Examples per device and forward pass.", unit="examples")
    per_device_eval_batch_size: Positive = option(
        8, "Examples per device and forward pass in evaluations.", unit="examples"
    )
    gradient_accumulation_steps: Positive = option(1, "Forward passes per update.", unit="forward passes")
    num_train_epochs: NonNegativeReal = option(3.0, "Passes over the data.", unit="epochs")
    max_steps: int = option(
        -1, "Updates to make, in place of num_train_epochs; -1 leaves it to the epochs.", unit="updates"
    )

    learning_rate: NonNegativeReal = option(5e-5, "Highest learning rate of the schedule.")
    lr_scheduler_type: str = option("linear", "Shape of the learning-rate schedule.")
    lr_scheduler_kwargs: JsonMapping | None = option(None, "Further arguments of the schedule.")
    warmup_steps: Steps = option(0, "Updates of rising learning rate; below 1 a share of all.", unit="updates or share")
    optim: str = option("adamw_torch_fused", "Optimizer, by the name transformers gives it.")
    optim_args: str | None = option(None, "Further arguments of the optimizer, such as a=1,b=2.")
    weight_decay: NonNegativeReal = option(0.0, "Decoupled weight decay.")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = option(0.9, "Decay of Adam's first moment.")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = option(0.999, "Decay of Adam's second moment.")
    adam_epsilon: NonNegativeReal = option(1e-8, "Smallest divisor in Adam.")
    max_grad_norm: NonNegativeReal = option(1.0, "Gradients are scaled down to this norm; 0 leaves them as they are.")
    label_smoothing_factor: Share = option(0.0, "Share of the target spread over the whole vocabulary.", unit="share")
    neftune_noise_alpha: NonNegativeReal | None = option(None, "Strength of the noise on input embeddings (NEFTune).")

    bf16: bool = option(False, "Mixed precision with bfloat16.")
    fp16: bool = option(False, "Mixed precision with float16.")
    seed: Whole = option(42, "Seed of all random numbers.")
    data_seed: int | None = option(None, "Seed of the data order; seed by default.")
    use_cpu: bool = option(False, "Train on the CPU even where there is an accelerator.")

    logging_strategy: Strategy = option("steps", "When to log.")
    logging_steps: Steps = option(500, "Updates between log lines; below 1 a share of all.", unit="updates or share")
    logging_first_step: bool = option(False, "Also log the first update.")
    report_to: CommaList = option(("none",), "Trackers to report to, separated by commas, or none.")
    run_name: str | None = option(None, "Name of the run for trackers.")
    project: str = option("huggingface", "Project of the run for trackers.")
    disable_tqdm: bool | None = option(None, "Show no progress bar.")
    include_num_input_tokens_seen: Annotated[Literal["no", "all", "non_padding"], BeforeValidator(_tokens_seen)] = (
        option("no", "Count the tokens seen: all, without padding, or not; true and false mean all and no.")
    )

    eval_strategy: Strategy = option("no", "When to evaluate.")
    eval_steps: Steps | None = option(
        None, "Updates between evaluations, logging_steps by default; below 1 a share of all.", unit="updates or share"
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = option("steps", "When to save a checkpoint.")
    save_steps: Steps = option(500, "Updates between checkpoints; below 1 a share of all.", unit="updates or share")
    save_total_limit: Positive | None = option(None, "Checkpoints to keep; older ones are deleted.", unit="checkpoints")
    save_only_model: bool = option(False, "Save weights only; such a checkpoint cannot be resumed.")
    load_best_model_at_end: bool = option(False, "Finish with the best checkpoint instead of the last.")
    metric_for_best_model: str | None = option(None, "Metric that decides which checkpoint is best; loss by default.")
    greater_is_better: bool | None = option(None, "Whether a larger metric is better; told by its name by default.")

    push_to_hub: bool = option(False, "Upload the result to the hub.")
    hub_model_id: str | None = option(None, "Hub repository to upload to.")
    hub_token: str | None = option(None, "Hub token for uploads.", secret=True)

    dataloader_num_workers: Whole = option(
        0, "Processes that collate batches; 0 uses the training process.", unit="processes"
    )
    ddp_backend: str | None = option(None, "Communication backend of distributed training.")
    ddp_timeout: Positive = option(1800, "Longest wait for other processes.", unit="seconds")
    ddp_find_unused_parameters: bool | None = option(None, "Let distributed training look for unused parameters.")
    deepspeed: JsonMappingOrPath | None = option(None, "DeepSpeed configuration: a mapping or a JSON file.")
    fsdp: bool | Words | None = option(None, "Shard the model with FSDP: true, or the options in words.")
    fsdp_config: JsonMappingOrPath | None = option(None, "FSDP details: a mapping or a JSON file.")
    extra: Mapping[str, object] = option({}, "Further training arguments, handed to transformers as they are.")

    @property
    def evaluates(self) -> bool:
        """True when this run evaluates at any time."""
        return self.do_eval or self.eval_strategy != "no"

    def to_hf_kwargs(self) -> dict[str, object]:
        """Keyword arguments for transformers' training arguments: only what was set, by the names of release 5.

        Plain lists and dicts, so that the library may change them.
        """
        chosen = {name: getattr(self, name) for name in self.model_fields_set - OURS_ALONE}
        chosen.update(self.extra)
        if "report_to" in chosen:
            chosen["report_to"] = list(self.report_to) or "none"
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in chosen.items()}
