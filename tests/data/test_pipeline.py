"""The whole room: configuration in, data sets out; the cache follows everything that decides a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.data import fingerprint
from llamafactory.data.pipeline import build_datasets, lengths_of
from llamafactory.errors import DataError
from llamafactory.rendering.renderer import Renderer, build_renderer
from llamafactory.rendering.tokens import IGNORE_INDEX

MakeConfig = Callable[..., RunConfig]
WriteSet = Callable[..., None]
Rows = Callable[[int], list[dict[str, str]]]


def entries(cache: Path) -> int:
    return sum(1 for path in (cache / "tokenized").iterdir() if path.is_dir())


def test_rows_in_file_order_with_their_columns(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer, tmp_path: Path
) -> None:
    write_set("a", alpaca_rows(5))
    built = build_datasets(make_config("a", training={"output_dir": str(tmp_path / "out")}), renderer)
    assert built.train is not None
    assert built.train.column_names == ["input_ids", "labels", "length", "source"]
    assert built.train["source"][:] == [f"a.json:{number}" for number in range(1, 6)]
    row = built.train[0]
    assert row["length"] == len(row["input_ids"]) == len(row["labels"])
    assert lengths_of(built.train).tolist() == built.train["length"][:]
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert report["a"]["kept"] == built.report.kept == 5


def test_eval_sets(make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer) -> None:
    for name, count in (("a", 6), ("b", 2), ("c", 3)):
        write_set(name, alpaca_rows(count))
    merged = build_datasets(make_config("a", eval_dataset=("b", "c")), renderer)
    assert {name: len(part) for name, part in merged.evals.items()} == {"validation": 5}
    apart = build_datasets(make_config("a", eval_dataset=("b", "c"), eval_on_each_dataset=True), renderer)
    assert {name: len(part) for name, part in apart.evals.items()} == {"b": 2, "c": 3}
    cut = build_datasets(make_config("a", val_size=1), renderer)
    assert (len(cut.train or ()), len(cut.evals["validation"])) == (5, 1)
    alone = build_datasets(make_config("a", eval_dataset=("b",)), renderer, for_training=False)
    assert alone.train is None
    assert list(alone.reports) == ["b"]


def test_eval_sets_are_mixed_as_the_strategy_says(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    for name, count in (("a", 6), ("b", 2), ("c", 3)):
        write_set(name, alpaca_rows(count))
    built = build_datasets(make_config("a", eval_dataset=("b", "c"), mix_strategy="interleave_once"), renderer)
    assert built.evals["validation"]["source"][:] == ["b.json:1", "c.json:1", "b.json:2", "c.json:2", "c.json:3"]


def test_the_registry_may_be_given_in_place(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer, data_dir: Path
) -> None:
    write_set("a", alpaca_rows(3))
    registry = {"mine": {"file_name": str(data_dir / "a.json")}}
    built = build_datasets(make_config("mine", dataset_dir=registry), renderer)
    assert built.train is not None and len(built.train) == 3
    with pytest.raises(DataError, match=r"dataset_dir: the data set 'mien' is not defined there .*did you mean 'mine'"):
        build_datasets(make_config("mien", dataset_dir=registry), renderer)


def test_mixing_and_the_same_set_twice(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    write_set("a", alpaca_rows(2))
    write_set("b", alpaca_rows(3))
    mixed = build_datasets(make_config("a", "b", mix_strategy="interleave_once"), renderer).train
    assert mixed is not None
    assert mixed["source"][:] == ["a.json:1", "b.json:1", "a.json:2", "b.json:2", "b.json:3"]
    assert len(build_datasets(make_config("a", "a"), renderer).train or ()) == 4


def test_samples(make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer) -> None:
    write_set("few", alpaca_rows(10), num_samples=4)
    write_set("many", alpaca_rows(3), num_samples=8)
    few = build_datasets(make_config("few"), renderer).train
    many = build_datasets(make_config("many"), renderer).train
    assert few is not None
    assert many is not None
    assert len(set(few["source"][:])) == 4
    assert (len(many), len(set(many["source"][:]))) == (8, 3)
    first = build_datasets(make_config("many", max_samples=2), renderer).train
    assert len(first or ()) == 2


def test_cache_hits_and_misses(
    make_config: MakeConfig,
    write_set: WriteSet,
    alpaca_rows: Rows,
    renderer: Renderer,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_set("a", alpaca_rows(5))
    build_datasets(make_config("a"), renderer)
    build_datasets(make_config("a", mix_strategy="interleave_over", preprocessing_num_workers=2), renderer)
    assert entries(own_cache) == 1
    for options in ({"cutoff_len": 20}, {"truncation": "tail"}, {"train_on_prompt": True}, {"mask_history": True},
                    {"max_samples": 3}):  # fmt: skip
        build_datasets(make_config("a", **options), renderer)
    assert entries(own_cache) == 6
    write_set("a", alpaca_rows(6))
    assert len(build_datasets(make_config("a"), renderer).train or ()) == 6
    assert entries(own_cache) == 7
    monkeypatch.setattr(fingerprint, "code_digest", lambda: "other code")
    build_datasets(make_config("a"), renderer)
    assert entries(own_cache) == 8


def test_cache_follows_tokenizer_and_template(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, tokenizer: PreTrainedTokenizerFast, own_cache: Path
) -> None:
    write_set("a", alpaca_rows(2))
    build_datasets(make_config("a"), build_renderer(tokenizer, TemplateConfig(template="chatml")))
    build_datasets(make_config("a"), build_renderer(tokenizer, TemplateConfig(template="llama3")))
    build_datasets(make_config("a"), build_renderer(tokenizer, TemplateConfig(template="chatml", default_system="S")))
    tokenizer.add_tokens(["Question"])
    build_datasets(make_config("a"), build_renderer(tokenizer, TemplateConfig(template="chatml")))
    assert entries(own_cache) == 4


def test_overwrite_cache_builds_again(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer, own_cache: Path
) -> None:
    write_set("a", alpaca_rows(2))
    build_datasets(make_config("a"), renderer)
    path = next((own_cache / "tokenized").glob("*/data.arrow"))
    before = path.stat().st_ino
    build_datasets(make_config("a"), renderer)
    assert path.stat().st_ino == before
    build_datasets(make_config("a", overwrite_cache=True), renderer)
    assert path.stat().st_ino != before


def test_workers_make_no_difference(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    write_set("a", alpaca_rows(50))
    alone = build_datasets(make_config("a", overwrite_cache=True), renderer).train
    assert alone is not None
    expected = alone.to_list()
    options = {"preprocessing_num_workers": 2, "preprocessing_batch_size": 7, "overwrite_cache": True}
    shared = build_datasets(make_config("a", **options), renderer).train
    assert shared is not None
    assert shared.to_list() == expected


def test_packing(make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer) -> None:
    write_set("a", alpaca_rows(40))
    plain = build_datasets(make_config("a"), renderer)
    packed = build_datasets(make_config("a", neat_packing=True, cutoff_len=128, val_size=5), renderer)
    assert packed.train is not None
    assert packed.train.column_names == ["input_ids", "labels", "lengths", "length", "source"]
    assert max(packed.train["length"][:]) <= 128
    assert all(sum(row["lengths"]) == row["length"] == len(row["input_ids"]) for row in packed.train)
    num_packed = sum(len(row["lengths"]) for part in (packed.train, packed.evals["validation"]) for row in part)
    assert num_packed == len(plain.train or ()) == 40
    assert len(packed.train) < 35


def test_pretraining(make_config: MakeConfig, write_set: WriteSet, renderer: Renderer) -> None:
    write_set("docs", [{"text": "word " * length} for length in (3, 100, 1, 40)], columns={"prompt": "text"})
    packed = build_datasets(make_config("docs", stage="pt", cutoff_len=32), renderer).train
    assert packed is not None
    assert [row["length"] for row in packed][:-1] == [32] * (len(packed) - 1)
    assert sum(len(row["lengths"]) for row in packed) > len(packed)
    single = build_datasets(make_config("docs", stage="pt", cutoff_len=32, packing=False), renderer).train
    assert single is not None
    assert len(single) == 4
    assert max(single["length"][:]) == 32


def test_weights_stay_when_they_matter(make_config: MakeConfig, write_set: WriteSet, renderer: Renderer) -> None:
    def talk(**keys: object) -> dict[str, object]:
        return {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", **keys}]}

    write_set("a", [talk(), talk(loss=0.5)], formatting="sharegpt")
    train = build_datasets(make_config("a"), renderer).train
    assert train is not None
    assert train[0]["weights"] is None
    assert max(train[1]["weights"]) == 0.5


def test_bad_rows_stop_the_run_or_are_skipped(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer, tmp_path: Path
) -> None:
    write_set("a", [*alpaca_rows(3), {"instruction": "q", "output": 3}, {"instruction": "q"}])
    with pytest.raises(DataError) as caught:
        build_datasets(make_config("a"), renderer)
    for part in (
        "a: 2 rows cannot be used",
        "a.json:4: field 'output': expected text, found int 3",
        "a.json:5",
        "data check",
    ):
        assert part in str(caught.value)
    built = build_datasets(make_config("a", on_bad_example="skip", training={"output_dir": str(tmp_path)}), renderer)
    assert len(built.train or ()) == 3
    report = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))
    assert report["a"]["num_bad"] == 2
    assert "a.json:5" in report["a"]["bad"][1]
    with pytest.raises(DataError, match="2 rows cannot be used"):
        build_datasets(make_config("a"), renderer)


def test_set_without_anything_to_learn_stops_the_run(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    write_set("a", alpaca_rows(3))
    with pytest.raises(DataError, match=r"a: not one of 3 rows.*3 x longer than cutoff_len.*raise cutoff_len"):
        build_datasets(make_config("a", cutoff_len=4), renderer)
    write_set("none", [])
    with pytest.raises(DataError, match=r"none: not one of 0 rows.*has no rows"):
        build_datasets(make_config("none"), renderer)


def test_sets_with_and_without_media_columns_mix(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    write_set("a", alpaca_rows(2))
    write_set("b", [{**row, "pics": []} for row in alpaca_rows(2)], columns={"images": "pics"})
    assert len(build_datasets(make_config("a", "b"), renderer).train or ()) == 4


def test_limits_hold_for_every_row(
    make_config: MakeConfig, write_set: WriteSet, alpaca_rows: Rows, renderer: Renderer
) -> None:
    write_set("a", alpaca_rows(20))
    train = build_datasets(make_config("a", cutoff_len=16), renderer).train
    assert train is not None
    assert max(train["length"][:]) <= 16
    assert all(any(label != IGNORE_INDEX for label in labels) for labels in train["labels"])


PROCESS = """
import sys
from transformers import AutoTokenizer
from llamafactory.config.run import RunConfig
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.data.pipeline import build_datasets
from llamafactory.rendering.renderer import build_renderer
config = RunConfig(
    data=DataConfig(dataset=("a",), dataset_dir=sys.argv[1], packing=True, cutoff_len=64, val_size=3),
    template=TemplateConfig(template="chatml"),
)
built = build_datasets(config, build_renderer(AutoTokenizer.from_pretrained(sys.argv[2]), config.template))
print(len(built.train), len(built.evals["validation"]), built.report.kept, built.train[0]["source"])
"""


@pytest.mark.slow
def test_several_processes_share_one_preparation(
    write_set: WriteSet, alpaca_rows: Rows, data_dir: Path, model_dir: Path, own_cache: Path
) -> None:
    write_set("a", alpaca_rows(60))
    base = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": "7"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(data_dir), str(model_dir)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[2] == "60"
    assert entries(own_cache) == 3


def test_pretraining_on_messages_says_what_it_reads(
    make_config: MakeConfig, write_set: WriteSet, renderer: Renderer, log_lines: list[str]
) -> None:
    turns = [{"from": "human", "value": "the text"}, {"from": "gpt", "value": "an answer"}]
    write_set("talks", [{"conversations": turns}], formatting="sharegpt")
    built = build_datasets(make_config("talks", stage="pt"), renderer)
    assert len(built.train or ()) == 1
    assert any("talks: pre-training reads the first message of each row" in line for line in log_lines)
