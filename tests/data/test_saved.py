"""tokenized_path: written once, read back, refused with other settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory.config.run import RunConfig
from llamafactory.data.pipeline import build_datasets
from llamafactory.errors import DataError
from llamafactory.rendering.renderer import Renderer

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def saved(
    make_config: MakeConfig, write_set: Callable[..., None], alpaca_rows: Callable[[int], list[dict[str, str]]],
    renderer: Renderer, tmp_path: Path,
) -> str:  # fmt: skip
    write_set("a", alpaca_rows(6))
    write_set("b", alpaca_rows(2))
    path = str(tmp_path / "tokens")
    build_datasets(make_config("a", eval_dataset=("b",), eval_on_each_dataset=True, tokenized_path=path), renderer)
    return path


def test_read_back_without_the_data(saved: str, make_config: MakeConfig, renderer: Renderer, data_dir: Path) -> None:
    shutil.rmtree(data_dir)
    built = build_datasets(make_config(tokenized_path=saved), renderer)
    assert built.train is not None
    assert built.train["source"][:] == [f"a.json:{number}" for number in range(1, 7)]
    assert {name: len(part) for name, part in built.evals.items()} == {"b": 2}
    assert not list(Path(saved).parent.glob(".*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cutoff_len": 10}, "cutoff_len was 2048 and is now 10"),
        ({"truncation": "drop"}, "truncation was 'balanced' and is now 'drop'"),
        ({"packing": True}, "packing was False and is now True"),
        ({"dataset": ("b",), "eval_dataset": ("b",)}, r"dataset was \['a'\] and is now \['b'\]"),
        ({"stage": "pt", "packing": False}, "stage was 'sft' and is now 'pt'"),
    ],
)
def test_other_settings_are_refused(
    saved: str, make_config: MakeConfig, renderer: Renderer, options: dict[str, object], told: str
) -> None:
    names = options.pop("dataset", ("a",))
    config = make_config(*names, tokenized_path=saved, **{"eval_dataset": ("b",), **options})  # type: ignore[misc]
    with pytest.raises(DataError, match=f"tokenized_path: .*prepared with other settings .*{told}.*remove the folder"):
        build_datasets(config, renderer)


def test_folder_without_settings_is_read_with_a_notice(saved: str, make_config: MakeConfig, renderer: Renderer) -> None:
    (Path(saved) / "llamafactory_settings.json").unlink()
    assert len(build_datasets(make_config(tokenized_path=saved, cutoff_len=7), renderer).train or ()) == 6


def test_folder_that_holds_something_else(make_config: MakeConfig, renderer: Renderer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="does not hold prepared data"):
        build_datasets(make_config(tokenized_path=str(tmp_path)), renderer)
