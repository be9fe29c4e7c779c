"""The output folder of a training run: may this run use it, and where does it go on?

A folder is never emptied. The same recipe goes on from its newest complete checkpoint; another recipe is refused with
the keys that differ; `overwrite_output_dir` sets an earlier run's files aside. Knows no model and no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

import yaml

from llamafactory.config import RunConfig
from llamafactory.config.catalog import Option, options
from llamafactory.config.run import plain
from llamafactory.errors import CheckpointError, ConfigError
from llamafactory.logs import get_logger
from llamafactory.training.checkpointing import find_resumable

logger = get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
_RUN_FILES = (
    "trainer_log.jsonl", "rollouts.jsonl", "error.json", "all_results.json", "train_results.json",
    "eval_results.json", "predict_results.json", "generated_predictions.jsonl",
)  # fmt: skip
_WEIGHT_FILES = (
    "adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "value_head.safetensors", "initial_adapter.safetensors",
)  # fmt: skip
# Keys that may change between the two halves of one run: they move files, logs or the end of the run, not an update.
_FREE_KEYS = frozenset(
    [
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "logging_steps",
        "logging_first_step",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "save_only_model",
        "eval_steps",
        "eval_strategy",
        "plot_loss",
        "report_to",
        "run_name",
        "disable_tqdm",
        "push_to_hub",
        "hub_model_id",
        "do_eval",
        "do_predict",
        "num_train_epochs",
        "max_steps",
        "preprocessing_num_workers",
        "overwrite_cache",
        "dataloader_num_workers",
        "tokenized_path",
        "ddp_timeout",
        "cache_dir",
        "print_param_status",
        "per_device_eval_batch_size",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "early_stopping_steps",
        "reward_model_timeout_seconds",
    ]
)
_FREE_SECTIONS = frozenset(["export", "vllm", "sglang", "swanlab"])


@dataclass(frozen=True)
class StartPoint:
    """Where a run begins: a checkpoint folder, or None for the beginning."""

    checkpoint: Path | None


def prepare(config: RunConfig) -> StartPoint:
    """Decide where the run starts and write its recipe. Call on the first process only.

    Raises ConfigError when the folder cannot be written or belongs to another recipe or to a finished run,
    CheckpointError when no checkpoint in it can be used.
    """
    folder = Path(str(config.training.output_dir))
    make_writable(folder)
    if config.training.overwrite_output_dir:
        _set_aside(folder)
    start = StartPoint(_checkpoint(config, folder))
    if start.checkpoint is None:
        _refuse_finished(folder)
    write_recipe(config, folder)
    (folder / "error.json").unlink(missing_ok=True)
    return start


def make_writable(folder: Path) -> None:
    """Make the folder and try to write into it. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir: '{folder}' cannot be written as a folder ({error.strerror}); choose another output_dir"
        ) from error


def write_recipe(config: RunConfig, folder: Path) -> None:
    """Write the resolved configuration, without secrets, so that the folder alone is enough to chat and export."""
    text = yaml.safe_dump(config.to_yaml_dict(redact=True), sort_keys=False, allow_unicode=True)
    staged = folder / f".{RECIPE_FILE}.tmp"
    staged.write_text(text, encoding="utf-8")
    staged.replace(folder / RECIPE_FILE)


def read_recipe(folder: Path) -> Mapping[str, object]:
    """The recipe stored in a run's folder, or an empty mapping."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _checkpoint(config: RunConfig, folder: Path) -> Path | None:
    asked = config.training.resume_from_checkpoint
    if isinstance(asked, str) and asked.lower() not in ("true", "false"):
        return _named_checkpoint(Path(asked))
    if asked is False or (isinstance(asked, str) and asked.lower() == "false"):
        return None
    found, skipped = find_resumable(folder)
    if found is None:
        if skipped or asked:
            raise CheckpointError(_no_checkpoint(folder, skipped, asked=bool(asked)))
        return None
    for path, reason in skipped:
        logger.warning("Skipped the checkpoint %s: %s", path, reason)
    _refuse_other_recipe(config, folder)
    logger.info("Going on from %s", found)
    return found


def _named_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"resume_from_checkpoint: the folder '{path}' does not exist; give a checkpoint-N folder")
    return path


def _no_checkpoint(folder: Path, skipped: list[tuple[Path, str]], *, asked: bool) -> str:
    by_reason: dict[str, list[str]] = {}
    for path, reason in skipped:
        by_reason.setdefault(reason, []).append(path.name)
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()) or "it holds none"
    key = "resume_from_checkpoint" if asked else "output_dir"
    rest = "" if asked else " of the earlier run in it, so this run cannot go on"
    return (
        f"{key}: '{folder}' has no complete checkpoint{rest} ({why}); choose another output_dir, or set "
        "overwrite_output_dir: true to start again (earlier files are set aside, not deleted)"
    )


def _refuse_other_recipe(config: RunConfig, folder: Path) -> None:
    before = read_recipe(folder)
    now = yaml.safe_load(yaml.safe_dump(config.to_yaml_dict(redact=True)))
    changed = [
        f"{key}: {_value(before, option)!r} -> {_value(now, option)!r}"
        for key, option in sorted(options().items())
        if key not in _FREE_KEYS
        and option.section not in _FREE_SECTIONS
        and _value(before, option) != _value(now, option)
    ]
    if before and changed:
        raise ConfigError(
            f"output_dir: '{folder}' holds checkpoints of a run with other settings ({'; '.join(changed)}); "
            "choose another output_dir, restore the settings, or set overwrite_output_dir: true"
        )


def _value(recipe: Mapping[str, object], option: Option) -> object:
    """The value in a recipe; the default where the release that wrote it did not have the key yet."""
    return recipe.get(option.key, plain(option.default, redact=False))


def _refuse_finished(folder: Path) -> None:
    found = [name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if found:
        raise ConfigError(
            f"output_dir: '{folder}' already holds trained weights ({found[0]}) and no checkpoint to go on from; "
            "choose another output_dir, or set overwrite_output_dir: true"
        )


def _set_aside(folder: Path) -> None:
    """Move an earlier run's checkpoints, logs and weights into `previous_run-N`, so that nothing is mixed or lost."""
    names = [*_RUN_FILES, *_WEIGHT_FILES, RECIPE_FILE]
    old = [path for path in folder.iterdir() if path.name in names or path.name.startswith("checkpoint-")]
    if not old:
        return
    number = next(number for number in count(1) if not (folder / f"previous_run-{number}").exists())
    target = folder / f"previous_run-{number}"
    target.mkdir()
    for path in old:
        path.replace(target / path.name)
    logger.info("overwrite_output_dir: set the files of the earlier run aside in %s", target)
