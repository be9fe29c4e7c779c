"""Rules about stages, losses, adapter methods and the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation

PPO_TRACKERS = {"wandb", "tensorboard", "trackio", "none"}


def supervised_losses(config: RunConfig) -> Iterator[Violation]:
    """DFT, ASFT and EAFT: one at a time, in stage sft."""
    chosen = [key for key in ("use_dft_loss", "use_asft_loss", "use_eaft_loss") if getattr(config.loss, key)]
    if len(chosen) > 1:
        yield Violation(tuple(chosen), "each one replaces the loss", "keep one of them")
    if chosen and config.finetuning.stage != "sft" and config.command in TRAIN:
        yield Violation((chosen[0], "stage"), "this loss only exists in stage sft", f"remove {chosen[0]}")


def preference_losses(config: RunConfig) -> Iterator[Violation]:
    """Smoothing and BCO only where their formulas are defined."""
    preference = config.preference
    if config.command not in TRAIN:
        return
    if preference.dpo_label_smoothing and preference.pref_loss not in {"sigmoid", "robust"}:
        yield Violation(
            ("dpo_label_smoothing", "pref_loss"),
            "only the losses sigmoid and robust are smoothed",
            "remove dpo_label_smoothing",
        )
    if preference.ref_model_adapters and preference.ref_model is None:
        yield Violation(
            ("ref_model_adapters", "ref_model"),
            "the adapters of a reference model need that model",
            "give ref_model, the base of these adapters",
        )
    if preference.pref_bco_weight and preference.pref_loss in {"kto_pair", "bco_pair"}:
        yield Violation(
            ("pref_bco_weight", "pref_loss"),
            f"BCO is not mixed into {preference.pref_loss}",
            "remove pref_bco_weight",
        )
    if config.finetuning.stage == "dpo" and preference.pref_bco_weight and not config.uses_reference:
        yield Violation(
            ("pref_bco_weight", "pref_loss"),
            "BCO compares with a reference model, and this loss has none",
            "remove pref_bco_weight",
        )


def stage_names_agree(config: RunConfig) -> Iterator[Violation]:
    """`stage: orpo` given from Python means stage dpo with that loss."""
    stage = config.finetuning.stage
    if stage in {"orpo", "simpo"} and config.preference.pref_loss != stage:
        yield Violation(("stage", "pref_loss"), "the two name different losses", f"set pref_loss to {stage}")


def ppo_limits(config: RunConfig) -> Iterator[Violation]:
    """PPO trains a policy against a reward model."""
    if config.finetuning.stage != "ppo" or config.command not in TRAIN:
        return
    if not config.training.do_train:
        yield Violation(("do_train", "stage"), "ppo can only train", "set do_train to true")
    yield from _reward_limits(config)
    if config.data.streaming:
        yield Violation(
            ("streaming", "stage"), "ppo passes over each round of prompts ppo_epochs times", "set streaming to false"
        )
    if config.generation.num_beams > 1:
        yield Violation(("num_beams", "stage"), "ppo learns from samples, not from beam search", "set num_beams to 1")
    if config.compute.shift_attn:
        yield Violation(("shift_attn", "stage"), "ppo generates text, which this attention cannot", "remove shift_attn")
    if not set(config.training.report_to) <= PPO_TRACKERS:
        yield Violation(("report_to", "stage"), f"ppo reports to {', '.join(sorted(PPO_TRACKERS))}", "choose of these")


def _reward_limits(config: RunConfig) -> Iterator[Violation]:
    ppo = config.ppo
    if ppo.reward_model is None:
        yield Violation(("reward_model", "stage"), "ppo needs rewards", "give the reward model")
        return
    is_url = ppo.reward_model.startswith(("http://", "https://"))
    if ppo.reward_model_type == "api" and not is_url:
        yield Violation(
            ("reward_model", "reward_model_type"),
            "a reward server is named by its URL",
            "start it with http:// or https://",
        )
    if ppo.reward_model_type != "api" and is_url:
        yield Violation(
            ("reward_model", "reward_model_type"), "a URL names a reward server", "set reward_model_type to api"
        )
    if ppo.reward_model_type == "lora":
        if config.finetuning.finetuning_type != "lora":
            yield Violation(
                ("reward_model_type", "finetuning_type"),
                "a reward adapter sits on a lora policy",
                "set reward_model_type to full or api",
            )
        if config.compute.use_unsloth:
            yield Violation(
                ("reward_model_type", "use_unsloth"), "unsloth holds one adapter", "set reward_model_type to full"
            )


def best_model_limits(config: RunConfig) -> Iterator[Violation]:
    """The best checkpoint can only be found when saving and evaluating go hand in hand."""
    training = config.training
    if config.command not in TRAIN or not training.load_best_model_at_end:
        return
    if config.finetuning.stage == "ppo":
        yield Violation(
            ("load_best_model_at_end", "stage"),
            "this stage keeps its last weights",
            "remove load_best_model_at_end",
        )
    if training.save_strategy == "best":
        return
    if training.eval_strategy != training.save_strategy:
        yield Violation(
            ("load_best_model_at_end", "eval_strategy", "save_strategy"),
            "every checkpoint needs an evaluation",
            "give eval_strategy and save_strategy the same value",
        )
    elif training.eval_strategy == "steps":
        yield from _steps_match(config)


def _steps_match(config: RunConfig) -> Iterator[Violation]:
    training = config.training
    every = training.eval_steps or training.logging_steps
    share = every < 1
    ratio = training.save_steps / every if every else 0.5
    if share != (training.save_steps < 1) or abs(ratio - round(ratio)) > 1e-6:
        yield Violation(
            ("load_best_model_at_end", "save_steps", "eval_steps"),
            "every checkpoint needs an evaluation",
            "make save_steps a multiple of eval_steps, both counts or both shares",
        )


def best_metric_exists(config: RunConfig) -> Iterator[Violation]:
    """The metric that decides is measured: accuracy only when asked for, and nothing without evaluations."""
    training = config.training
    if config.command not in TRAIN or not training.do_train:
        return
    if training.save_strategy == "best" and training.eval_strategy == "no":
        yield Violation(
            ("save_strategy", "eval_strategy"),
            "the best weights are found by evaluating",
            "set eval_strategy to steps or epoch and give val_size or eval_dataset",
        )
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if metric == "accuracy" and config.finetuning.stage in {"pt", "sft"} and not config.finetuning.compute_accuracy:
        yield Violation(
            ("metric_for_best_model", "compute_accuracy"), "accuracy is not measured", "set compute_accuracy to true"
        )


def schedule_follows_evaluations(config: RunConfig) -> Iterator[Violation]:
    """A schedule that looks at the evaluation loss needs one."""
    training = config.training
    watches = training.lr_scheduler_type in {"reduce_lr_on_plateau", "greedy"} and training.do_train
    if config.command in TRAIN and watches and training.eval_strategy == "no":
        yield Violation(
            ("lr_scheduler_type", "eval_strategy"),
            "this schedule follows the evaluation loss",
            "set eval_strategy to steps or epoch and give val_size or eval_dataset",
        )


def early_stopping_limits(config: RunConfig) -> Iterator[Violation]:
    """Stopping early looks at evaluations and keeps the best checkpoint."""
    training = config.training
    if config.command not in TRAIN or config.finetuning.early_stopping_steps is None:
        return
    for key, missing in (
        ("eval_strategy", training.eval_strategy == "no"),
        ("load_best_model_at_end", not training.load_best_model_at_end),
    ):
        if missing:
            fix = "set eval_strategy to steps or epoch" if key == "eval_strategy" else f"set {key} to true"
            yield Violation(("early_stopping_steps", key), "stopping early needs it", fix)


def lora_variants(config: RunConfig) -> Iterator[Violation]:
    """Variants of LoRA exist in LoRA only."""
    method = config.finetuning.finetuning_type
    if method == "lora" or config.command not in TRAIN:
        return
    variants = ("use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio", "lora_init", "lora_target_parameters")
    for key in variants:
        if getattr(config.lora, key) not in (False, None, (), "default"):
            yield Violation((key, "finetuning_type"), "it is a variant of lora", "set finetuning_type to lora")


def pissa_limits(config: RunConfig) -> Iterator[Violation]:
    """A start that takes values out of the base changes it, so the base can be neither quantized nor a reference."""
    if config.command not in TRAIN:
        return
    if config.lora.lora_target_parameters and config.lora.lora_dropout:
        yield Violation(
            ("lora_target_parameters", "lora_dropout"), "adapters of fused weights have no dropout", "set it to 0"
        )
    if config.lora.pissa_init and config.lora.lora_init not in {"default", "pissa"}:
        yield Violation(("pissa_init", "lora_init"), "an adapter has one start", "keep one of them")
    if not config.lora.changes_base:
        return
    key = "pissa_init" if config.lora.pissa_init else "lora_init"
    if config.lora.pissa_convert and config.lora.init == "loftq":
        yield Violation(("pissa_convert", "lora_init"), "a rounded base is no plain base", "remove pissa_convert")
    quantization = config.quantization
    if quantization.quantization_bit is not None and config.lora.init != "loftq":
        yield Violation(
            (key, "quantization_bit"),
            "quantized weights have no components to take",
            "set lora_init to loftq, or remove one of the two",
        )
    elif quantization.quantization_bit is not None and (
        (quantization.quantization_method, quantization.quantization_bit) != ("bnb", 4)
    ):
        yield Violation((key, "quantization_bit"), "LoftQ corrects 4-bit weights of bnb", "use bnb with 4 bits")
    if config.uses_reference:
        yield Violation((key, "stage"), "without its adapter the model is no reference any more", f"remove {key}")


def freeze_limits(config: RunConfig) -> Iterator[Violation]:
    """Something must learn, and added blocks need a method that trains blocks."""
    method = config.finetuning.finetuning_type
    if config.command not in TRAIN:
        return
    if config.finetuning.use_llama_pro and method == "full":
        yield Violation(
            ("use_llama_pro", "finetuning_type"), "full training has no chosen blocks", "set finetuning_type to freeze"
        )
    if method == "freeze" and config.freeze.freeze_trainable_layers == 0 and not config.freeze.freeze_extra_modules:
        yield Violation(
            ("freeze_trainable_layers", "finetuning_type"), "nothing would learn", "give a count other than 0"
        )


def oft_limits(config: RunConfig) -> Iterator[Violation]:
    """The block size follows from the number of blocks, or the other way round."""
    if config.finetuning.finetuning_type != "oft":
        return
    if bool(config.oft.oft_rank) == bool(config.oft.oft_block_size):
        yield Violation(
            ("oft_rank", "oft_block_size"),
            "one follows from the other",
            "set one of them to 0, the other above 0",
        )


def tracker_limits(config: RunConfig) -> Iterator[Violation]:
    """Trackio files runs under a project."""
    if "trackio" in config.training.report_to and "project" not in config.origins and config.command in TRAIN:
        yield Violation(("report_to", "project"), "trackio files runs under a project", "give its name in project")


RULES: tuple[Rule, ...] = (
    supervised_losses,
    preference_losses,
    stage_names_agree,
    ppo_limits,
    best_model_limits,
    best_metric_exists,
    schedule_follows_evaluations,
    early_stopping_limits,
    lora_variants,
    pissa_limits,
    freeze_limits,
    oft_limits,
    tracker_limits,
)
