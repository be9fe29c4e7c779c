"""The starter model: built from the data folder, the same every time, loadable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory.errors import ConfigError, DataError
from llamafactory.recipes.init import read_texts, run_init

SMALL = ["--hidden_size", "32", "--num_layers", "1", "--num_heads", "2", "--max_length", "64"]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([{"instruction": "Name a colour.", "list": ["red", 1]}]))
    (folder / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (folder / "c.txt").write_text("three\nfour\n")
    (folder / "dataset_info.json").write_text('{"x": "not a text"}')
    return folder


def test_texts(data_dir: Path) -> None:
    assert list(read_texts(data_dir)) == ["Name a colour.", "red", "one", "two", "three", "four"]


def test_builds_and_loads(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        assert run_init([str(folder), "--data_dir", str(data_dir), *SMALL]) == 0
    assert "Wrote a random model" in capsys.readouterr().out
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)
    assert tokenizer.decode(tokenizer("Name a colour.")["input_ids"]) == "Name a colour."
    run_init([str(folders[0]), "--data_dir", str(data_dir), "--seed", "7", *SMALL])
    assert (folders[0] / "model.safetensors").read_bytes() != weights[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"init: .*DIR.*write: llamafactory-cli init"),
        (["x", "--hidden_size", "no"], r"init: argument --hidden_size: invalid"),
        (["x", "--num_layers", "0"], r"0 is not a number above 0"),
        (["x", "--hidden_size", "33"], r"hidden_size 33 cannot be split into 4 heads .* multiple of 8"),
    ],
)
def test_bad_words(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_init(words)


def test_folder_in_use(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds other files \(a.json\).*name a new folder"):
        run_init([str(data_dir), "--data_dir", str(data_dir)])
    with pytest.raises(ConfigError, match="is a file"):
        run_init([str(data_dir / "a.json")])


def test_no_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no .json, .jsonl or .txt file"):
        run_init([str(tmp_path / "x"), "--data_dir", str(tmp_path / "nowhere")])


def test_bad_json(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "b.jsonl").write_text('{"text": "one"}\n{broken\n')
    with pytest.raises(DataError, match=r"b.jsonl:2 is not valid JSON"):
        run_init([str(tmp_path / "x"), "--data_dir", str(data_dir)])
