"""Rules about data: which sets a run needs, streaming, mixing, packing, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation


def needs_data(config: RunConfig) -> Iterator[Violation]:
    """Training, evaluating and looking at data need data sets or a folder of prepared data."""
    data, training = config.data, config.training
    if config.command not in TRAIN or data.tokenized_path is not None:
        return
    if training.do_train and not data.dataset:
        yield Violation(("dataset", "do_train"), "there is nothing to train on", "name at least one data set")
    if config.command == "data" and not data.dataset and not data.eval_dataset:
        yield Violation(("dataset",), "there is nothing to look at", "name at least one data set")


def evaluation_needs_data(config: RunConfig) -> Iterator[Violation]:
    """Evaluating and predicting need data of their own."""
    data, training = config.data, config.training
    if config.command not in TRAIN or data.eval_dataset or data.val_size > 1e-6 or data.tokenized_path is not None:
        return
    for key in ("do_eval", "do_predict", "predict_with_generate"):
        if getattr(training, key):
            yield Violation((key, "eval_dataset"), "there is no evaluation data", "set eval_dataset or val_size")
            return
    if config.command == "predict":
        yield Violation(("eval_dataset",), "there is no data to make predictions for", "set eval_dataset or val_size")
    elif training.eval_strategy != "no":
        yield Violation(
            ("eval_strategy", "eval_dataset"), "there is no evaluation data", "set eval_dataset or val_size"
        )


def validation_split(config: RunConfig) -> Iterator[Violation]:
    """A part of the training data, or data of its own, not both; counts are whole."""
    data = config.data
    if config.command not in TRAIN or not data.val_size:
        return
    if data.eval_dataset:
        yield Violation(
            ("val_size", "eval_dataset"), "evaluation data would come from two places", "keep one of the two"
        )
    if not data.dataset and data.tokenized_path is None:
        yield Violation(("val_size", "dataset"), "there is no data to take a part of", "name at least one data set")
    if data.val_size > 1 and not float(data.val_size).is_integer():
        yield Violation(("val_size",), "from 1 upwards it counts examples", "give a whole number, or a share below 1")


def streaming_limits(config: RunConfig) -> Iterator[Violation]:
    """A stream has no length."""
    data = config.data
    if config.command not in TRAIN or not data.streaming:
        return
    if config.training.do_train and config.training.max_steps <= 0:
        yield Violation(("max_steps", "streaming"), "a stream has no end", "set max_steps to the updates to make")
    if data.max_samples is not None:
        yield Violation(
            ("max_samples", "streaming"), "a stream is not cut by count", "remove max_samples, or set max_steps"
        )
    if 0 < data.val_size < 1:
        yield Violation(("val_size", "streaming"), "a stream has no length to take a share of", "give a count from 1")
    if data.tokenized_path is not None and not Path(data.tokenized_path).exists():
        yield Violation(
            ("tokenized_path", "streaming"), "a stream cannot be written as prepared data", "set streaming to false"
        )


def mixing_limits(config: RunConfig) -> Iterator[Violation]:
    """Probabilities belong to interleaving, one for each data set."""
    data = config.data
    if not data.interleave_probs:
        return
    if data.mix_strategy == "concat":
        yield Violation(
            ("interleave_probs", "mix_strategy"),
            "joined one after the other, data sets have no probabilities",
            "set mix_strategy to interleave_under, interleave_over or interleave_once, or remove interleave_probs",
        )
    for key in ("dataset", "eval_dataset"):
        num_sets = len(getattr(data, key))
        separate = key == "eval_dataset" and data.eval_on_each_dataset
        if num_sets and not separate and num_sets != len(data.interleave_probs):
            yield Violation(
                ("interleave_probs", key),
                f"{len(data.interleave_probs)} probabilities for {num_sets} data sets",
                "give one for each",
            )
    if any(value < 0 for value in data.interleave_probs) or sum(data.interleave_probs) <= 0:
        yield Violation(("interleave_probs",), "probabilities are not negative, and one is positive", "correct them")


def masks_belong_to_sft(config: RunConfig) -> Iterator[Violation]:
    """Options about prompt and answer have a meaning in stage sft only."""
    if config.finetuning.stage == "sft" or config.command not in TRAIN:
        return
    keys = [key for key in ("train_on_prompt", "mask_history", "neat_packing") if getattr(config.data, key)]
    if config.training.predict_with_generate:
        keys.append("predict_with_generate")
    for key in keys:
        yield Violation((key, "stage"), "it only exists in stage sft", f"remove {key}")


def masks_exclude_each_other(config: RunConfig) -> Iterator[Violation]:
    """Learning the prompt and learning only the last answer contradict each other."""
    if config.data.train_on_prompt and config.data.mask_history:
        yield Violation(
            ("mask_history", "train_on_prompt"),
            "one learns only the last answer, the other learns everything",
            "keep one of the two",
        )


def packing_limits(config: RunConfig) -> Iterator[Violation]:
    """Only pt and sft fill sequences with several examples."""
    if config.command in TRAIN and config.data.packing and config.finetuning.stage not in {"pt", "sft"}:
        yield Violation(("packing", "stage"), "only stages pt and sft pack", "remove packing")
    if config.data.neat_packing and config.data.packing is False:
        yield Violation(("neat_packing", "packing"), "one asks for packing, the other forbids it", "keep one of them")


def prediction_limits(config: RunConfig) -> Iterator[Violation]:
    """Predicting means generating in stage sft; pt has no questions, and generating has no token accuracy."""
    training = config.training
    trains = config.command != "predict"
    if trains and config.finetuning.stage == "pt" and training.do_predict:
        yield Violation(
            ("do_predict", "stage"),
            "plain text asks no questions",
            "set do_predict to false, or use the command predict with a data set of conversations",
        )
    if trains and config.finetuning.stage == "sft" and training.do_predict and not training.predict_with_generate:
        yield Violation(
            ("do_predict", "predict_with_generate"),
            "stage sft predicts by generating",
            "set predict_with_generate to true",
        )
    if training.predict_with_generate and config.finetuning.compute_accuracy:
        yield Violation(
            ("compute_accuracy", "predict_with_generate"),
            "generated text is not compared token by token",
            "keep one of the two",
        )


RULES: tuple[Rule, ...] = (
    needs_data,
    evaluation_needs_data,
    validation_split,
    streaming_limits,
    mixing_limits,
    masks_belong_to_sft,
    masks_exclude_each_other,
    packing_limits,
    prediction_limits,
)
