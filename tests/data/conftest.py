"""Fixtures of the data room: a private cache, data sets in a temporary folder, configurations, a chatml renderer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.config.sections.training import TrainingConfig
from llamafactory.data.catalog import DatasetEntry, load_entries
from llamafactory.logs import get_logger
from llamafactory.rendering.renderer import Renderer, build_renderer

MakeConfig = Callable[..., RunConfig]
WriteSet = Callable[..., None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(root))
    return root


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """What the program logs while the test runs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = get_logger("llamafactory")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return build_renderer(tokenizer, TemplateConfig(template="chatml"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def write_set(data_dir: Path) -> WriteSet:
    """Write rows as a JSON file and its registry entry."""

    def write(name: str, rows: Sequence[object], **entry: object) -> None:
        (data_dir / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        path = data_dir / "dataset_info.json"
        registry = json.loads(path.read_text(encoding="utf-8"))
        registry[name] = {"file_name": f"{name}.json", **entry}
        path.write_text(json.dumps(registry), encoding="utf-8")

    return write


@pytest.fixture
def make_config(data_dir: Path) -> MakeConfig:
    """A configuration over `data_dir`; training options go in `training`."""

    def make(
        *names: str, stage: str = "sft", training: dict[str, object] | None = None, shuffle: bool = True, **data: object
    ) -> RunConfig:
        return RunConfig(
            data=DataConfig(**{"dataset": names, "dataset_dir": str(data_dir), **data}),
            template=TemplateConfig(template="chatml"),
            finetuning=FinetuningConfig(stage=stage, disable_shuffling=not shuffle),
            training=TrainingConfig(**(training or {})),
        )

    return make


@pytest.fixture
def make_entry() -> Callable[..., DatasetEntry]:
    def make(**entry: object) -> DatasetEntry:
        return load_entries(["set"], {"set": {"file_name": "set.json", **entry}}, where="dataset_info.json")[0]

    return make


@pytest.fixture
def alpaca_rows() -> Callable[[int], list[dict[str, str]]]:
    def make(count: int) -> list[dict[str, str]]:
        return [
            {"instruction": f"Question {index}?", "input": "", "output": "word " * (1 + index % 7) + str(index)}
            for index in range(count)
        ]

    return make
