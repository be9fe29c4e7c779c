"""Which rows a run uses, and the records they are, without a tokenizer."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from llamafactory.config.run import RunConfig
from llamafactory.data.rows import load_records, sample, watch_columns
from llamafactory.data.sources import NamedRow
from llamafactory.errors import DataError
from llamafactory.rendering.records import Conversation

ROWS: list[NamedRow] = [(f"s:{number}", {"n": number}) for number in range(1, 11)]


def drawn(num_samples: int | None, max_samples: int | None = None, seed: int = 1) -> list[str]:
    def read() -> Iterator[NamedRow]:
        return iter(ROWS)

    return [name for name, _ in sample(read, num_samples=num_samples, max_samples=max_samples, seed=seed)]


def test_first_rows_without_sampling() -> None:
    assert drawn(None) == [name for name, _ in ROWS]
    assert drawn(None, 3) == ["s:1", "s:2", "s:3"]


def test_random_sample_in_file_order() -> None:
    few = drawn(4)
    assert len(set(few)) == 4
    assert few == sorted(few, key=lambda name: int(name[2:]))
    assert few == drawn(4) != drawn(4, seed=2)


def test_more_samples_than_rows_repeats_some() -> None:
    times = Counter(drawn(25))
    assert sum(times.values()) == 25
    assert len(times) == 10


def test_max_samples_of_a_sample_is_not_its_beginning() -> None:
    picks = {drawn(10, 2, seed=seed)[1] for seed in range(20)}
    assert len(picks) > 4


def test_column_that_no_row_has_is_noticed(make_entry: Callable[..., object], log_lines: list[str]) -> None:
    entry = make_entry(columns={"system": "nn", "prompt": "n"})
    assert list(watch_columns(iter(ROWS), entry)) == ROWS  # type: ignore[arg-type]
    assert len(log_lines) == 1
    assert "set: columns.system: no row has a field 'nn' (the first has n)" in log_lines[0]


def test_records_and_errors(make_config: Callable[..., RunConfig], write_set: Callable[..., None]) -> None:
    write_set("a", [{"instruction": "q", "output": "a"}, {"instruction": "q"}, "text"])
    good, bad, broken = load_records(make_config("a"))
    assert isinstance(good, Conversation)
    assert isinstance(bad, DataError)
    assert "a.json:3: the row is a JSON str" in str(broken)


def test_reading_records_needs_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; import llamafactory.recipes.data; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
