"""tokenized_path: prepared data kept in a folder of the user's choice, with the settings it was made with.

The folder is a `datasets.DatasetDict` on disk plus settings.json. Knows no rendering.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from datasets import (
    Dataset,
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)

from llamafactory.config.run import RunConfig
from llamafactory.data.fingerprint import digest_of
from llamafactory.errors import DataError
from llamafactory.logs import notice

_SETTINGS = "llamafactory_settings.json"
_PREFIX = "validation_"


@dataclass(frozen=True)
class Settings:
    """What decides the tokens of prepared data. dataset and eval_dataset are compared only when the run names some."""

    stage: str
    dataset: list[str]
    eval_dataset: list[str]
    cutoff_len: int
    truncation: str
    train_on_prompt: bool
    mask_history: bool
    packing: bool
    val_size: float
    max_samples: int | None
    template: str | None
    template_options: str
    renderer: str

    @classmethod
    def of(cls, config: RunConfig, renderer: str) -> Self:
        """The settings of a run; `renderer` is the fingerprint of its tokenizer and template."""
        data = config.data
        return cls(
            stage=config.finetuning.stage,
            dataset=list(data.dataset),
            eval_dataset=list(data.eval_dataset),
            cutoff_len=data.cutoff_len,
            truncation=data.truncation,
            train_on_prompt=data.train_on_prompt,
            mask_history=data.mask_history,
            packing=config.packs,
            val_size=data.val_size,
            max_samples=data.max_samples,
            template=config.template.template,
            template_options=digest_of(config.template.model_dump(mode="json"))[:16],
            renderer=renderer[:16],
        )


def exists(folder: Path) -> bool:
    """True when the folder holds something."""
    return folder.is_dir() and any(folder.iterdir())


def save(folder: Path, settings: Settings, train: Dataset | None, evals: Mapping[str, Dataset]) -> None:
    """Write the sets and their settings; the folder appears whole, so that no other process reads half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    sets = {} if train is None else {"train": train}
    sets |= {name if name == "validation" else f"{_PREFIX}{name}": dataset for name, dataset in evals.items()}
    bars = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        DatasetDict(sets).save_to_disk(str(staged))
    finally:
        if not bars:
            enable_progress_bars()
    text = json.dumps(asdict(settings), ensure_ascii=False, indent=2)
    (staged / _SETTINGS).write_text(text + "\n", encoding="utf-8")
    staged.rename(folder)


def load(folder: Path, settings: Settings) -> tuple[Dataset | None, dict[str, Dataset]]:
    """Read the sets. Raises DataError when they were made with other settings or cannot be read."""
    _check(folder, settings)
    try:
        sets = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"tokenized_path: {folder} does not hold prepared data ({str(error).splitlines()[0]}); "
            "remove the folder to prepare the data again, or give another path"
        ) from error
    if isinstance(sets, Dataset):
        return sets, {}
    evals = {name.removeprefix(_PREFIX): dataset for name, dataset in sets.items() if name != "train"}
    return sets.get("train"), evals


def _check(folder: Path, settings: Settings) -> None:
    path = folder / _SETTINGS
    if not path.is_file():
        notice(f"tokenized_path: {folder} has no {_SETTINGS}, so its settings cannot be compared with this run's")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    wanted = asdict(settings)
    ignored = {key for key in ("dataset", "eval_dataset") if not wanted[key]}
    changed = [key for key in wanted if key not in ignored and kept.get(key) != wanted[key]]
    if changed:
        told = ", ".join(f"{key} was {kept.get(key)!r} and is now {wanted[key]!r}" for key in changed)
        raise DataError(
            f"tokenized_path: {folder} was prepared with other settings ({told}), so its tokens are not those this "
            "run asks for; restore the settings, or remove the folder to prepare the data again"
        )
