"""The data commands: check rows, preview tokens, count lengths, write prepared data.

`run_check` needs neither a tokenizer nor torch; the others load the tokenizer, none of them a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.config.run import RunConfig
from llamafactory.data.fields import RowError
from llamafactory.data.rows import load_records
from llamafactory.errors import ConfigError, DataError
from llamafactory.logs import notice
from llamafactory.rendering.records import Conversation, Preference, Record, Text

if TYPE_CHECKING:
    from llamafactory.data.pipeline import Datasets
    from llamafactory.recipes.preview import Shown
    from llamafactory.rendering.renderer import Renderer

_DEFAULT_PREVIEW = 3
_DEFAULT_BAD = 20


def run_check(config: RunConfig, *, limit: int | None = None, format: str = "text") -> None:
    """Read every row of every data set and print those that cannot be used: file, row, field, expected, found.

    limit: most rows to print (20). format: text, or json for one object a line. Raises DataError when a row is bad.
    """
    _allow(format, "data check", ("text", "json"))
    num_rows = num_bad = 0
    for record in load_records(config):
        num_rows += 1
        error = record if isinstance(record, DataError) else _missing_medium(record)
        if error is None:
            continue
        num_bad += 1
        if num_bad <= (limit or _DEFAULT_BAD):
            _print(_error_json(error) if format == "json" else str(error))
    if not num_rows:
        raise DataError(
            "dataset: the data sets have no rows, so there is nothing to train on; check the files they name"
        )
    if num_bad:
        raise DataError(
            f"dataset: {num_bad} of {num_rows} rows cannot be used (listed above, at most {limit or _DEFAULT_BAD}); "
            "repair them, or leave them out with on_bad_example: skip"
        )
    if format == "text":
        _print(f"{num_rows} rows, all usable")


def run_preview(config: RunConfig, *, limit: int | None = None, format: str = "text") -> None:
    """Print the first examples as the model will see them, learnt tokens marked.

    limit: number of examples (3). format: text (coloured on a terminal), html (one page) or json (one object a line).
    """
    from llamafactory.recipes.preview import to_html, to_json, to_text

    _allow(format, "data preview", ("text", "html", "json"))
    shown = _show(config, limit or _DEFAULT_PREVIEW)
    if format == "html":
        _print(to_html(list(shown)))
        return
    colour = sys.stdout.isatty()
    for example in shown:
        _print(to_json(example) if format == "json" else to_text(example, colour=colour))


def run_stats(config: RunConfig, *, limit: int | None = None, format: str = "text") -> None:
    """Print lengths (p50, p95, max), the supervised share, and how many rows were cut, dropped or bad.

    limit: rows to read of each data set (all). format: text or json.
    """
    from llamafactory.data.pipeline import build_datasets

    _allow(format, "data stats", ("text", "json"))
    data = config.data.model_copy(update={"val_size": 0.0, "tokenized_path": None, "streaming": False})
    if limit is not None:
        data = data.model_copy(update={"max_samples": limit})
    whole = replace(config, data=data, training=config.training.model_copy(update={"output_dir": None}))
    datasets = build_datasets(whole, _renderer(config))
    facts = _stats(datasets)
    if format == "json":
        _print(json.dumps(facts, ensure_ascii=False))
        return
    for name, report in datasets.reports.items():
        _print(f"{name}: {report.line()}")
    for part in ("train", *datasets.evals):
        if part in facts:
            _print("{}: {rows} rows, tokens p50 {p50}, p95 {p95}, max {max}".format(part, **facts[part]))


def run_build(config: RunConfig) -> None:
    """Prepare the data of a run and write it to tokenized_path, for later runs to read."""
    from llamafactory.data.pipeline import build_datasets

    if not config.data.tokenized_path:
        raise ConfigError(
            "tokenized_path: not given, so there is nowhere to write the prepared data to; set tokenized_path to a "
            "new folder"
        )
    datasets = build_datasets(config, _renderer(config))
    sizes = {"train": datasets.train, **datasets.evals}
    told = ", ".join(f"{name}: {len(part)} rows" for name, part in sizes.items() if part is not None)
    _print(f"{config.data.tokenized_path}: {told}")


def _stats(datasets: Datasets) -> dict[str, dict[str, object]]:
    import numpy as np

    from llamafactory.data.pipeline import lengths_of

    facts: dict[str, dict[str, object]] = {}
    for name, part in (("train", datasets.train), *datasets.evals.items()):
        if part is None:
            continue
        lengths = lengths_of(part)
        p50, p95 = np.percentile(lengths, [50, 95]).round().astype(int).tolist()
        facts[name] = {"rows": len(lengths), "p50": p50, "p95": p95, "max": int(lengths.max())}
    for name, report in datasets.reports.items():
        facts[f"report {name}"] = {**asdict(report), "supervised_ratio": round(report.supervised_ratio, 4)}
    return facts


def _show(config: RunConfig, limit: int) -> Iterator[Shown]:
    """Encode the first rows of each data set until `limit` examples are found."""
    from llamafactory.data.encode import Encoder
    from llamafactory.data.plan import make_plan, open_rows
    from llamafactory.data.rows import choose_rows
    from llamafactory.recipes.preview import show

    plan = make_plan(config)
    renderer, tokenizer = _renderer_and_tokenizer(config)
    count = 0
    for entry in dict.fromkeys((*plan.train, *plan.evals)):
        encoder = Encoder(entry, plan.kind, renderer, plan.limits)
        uncut = replace(encoder, limits=replace(plan.limits, limit=None))
        for named in choose_rows(config, entry, open_rows(entry, plan.access)):
            chunk = encoder([named])
            for line in chunk.report.bad:
                sys.stderr.write(f"{line}\n")
            for note in chunk.report.notes:
                notice(f"{entry.name}: {note}")
            for why, detail in chunk.report.dropped.items():
                sys.stderr.write(f"{detail.first[0]}: dropped, {why}\n")
            for example in chunk.examples:
                whole = uncut([named]).examples[0] if example.truncated else example
                yield show(example, tokenizer, index=count, whole=whole)
                count += 1
            if count >= limit:
                return


def _renderer(config: RunConfig) -> Renderer:
    return _renderer_and_tokenizer(config)[0]


def _renderer_and_tokenizer(config: RunConfig) -> tuple[Renderer, object]:
    from llamafactory.inference.loading import load_renderer

    bundle, renderer = load_renderer(config)
    return renderer, bundle.tokenizer


def _missing_medium(record: Record) -> RowError | None:
    """A complaint about the first medium whose file does not exist."""
    if isinstance(record, Text):
        return None
    talk = record if isinstance(record, Conversation) else None
    talk = talk or (record.prompt if isinstance(record, Preference) else record.conversation)  # type: ignore[union-attr]
    for field in ("images", "videos", "audios"):
        for medium in getattr(talk.media, field):
            if isinstance(medium, str) and "://" not in medium and not Path(medium).is_file():
                return RowError(
                    talk.source,
                    field,
                    expected="an existing file",
                    found=repr(medium),
                    fix="correct the path or media_dir",
                )
    return None


def _error_json(error: DataError) -> str:
    facts = {key: getattr(error, key, None) for key in ("source", "field", "expected", "found")}
    return json.dumps({**facts, "message": str(error)}, ensure_ascii=False)


def _allow(format: str, command: str, formats: Sequence[str]) -> None:
    if format not in formats:
        raise ConfigError(
            f"{command} --format: {format!r} is not a form this command can print (choose from {', '.join(formats)})"
        )


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
