"""The data commands, on the tiny model's tokenizer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.model import ModelConfig
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.errors import ConfigError, DataError
from llamafactory.logs import notice
from llamafactory.recipes.data import run_build, run_check, run_preview, run_stats
from llamafactory.recipes.preview import Segment, Shown, Side, lost_runs, to_text

Make = Callable[..., RunConfig]
GOOD = {"instruction": "Who?", "input": "", "output": "Me <b>&."}


@pytest.fixture
def make(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A configuration over one data set of the given rows."""
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))

    def build(rows: object, entry: dict[str, object] | None = None, stage: str = "sft", **data: object) -> RunConfig:
        (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
        registry = {"a": {"file_name": "a.json", **(entry or {})}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
        return RunConfig(
            model=ModelConfig(model_name_or_path=str(model_dir)),
            data=DataConfig(dataset=("a",), dataset_dir=str(tmp_path), **data),
            template=TemplateConfig(template="chatml"),
            finetuning=FinetuningConfig(stage=stage),
        )

    return build


def test_check_passes(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_check(make([GOOD, GOOD]))
    assert capsys.readouterr().out == "2 rows, all usable\n"


def test_check_lists_every_bad_row(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make([GOOD, {"instruction": "q"}, {"instruction": 3, "output": "a"}])
    with pytest.raises(DataError, match=r"2 of 3 rows cannot be used.*on_bad_example: skip"):
        run_check(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a.json:2: field 'output': expected text, found nothing")
    assert lines[1].startswith("a.json:3: field 'instruction': expected text, found int 3")
    with pytest.raises(DataError, match="2 of 3"):
        run_check(config, limit=1, format="json")
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(fact["source"], fact["field"], fact["expected"], fact["found"]) for fact in facts] == [
        ("a.json:2", "output", "text", "nothing")
    ]


def test_check_finds_missing_media_and_empty_sets(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": "<image>", "output": "a", "pic": "none.png"}
    with pytest.raises(DataError, match="1 of 1"):
        run_check(make([row], {"columns": {"images": "pic"}}))
    assert "field 'images': expected an existing file, found 'none.png'" in capsys.readouterr().out
    with pytest.raises(DataError, match="have no rows"):
        run_check(make([]))


def test_preview_json_lines(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_preview(make([GOOD, GOOD, GOOD]), limit=2, format="json")
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["index"], second["index"], second["source"]) == (0, 1, "a.json:2")
    assert len(first["input_ids"]) == len(first["labels"])
    assert "".join(segment["text"] for segment in first["segments"]) == first["text"]
    assert [segment["text"] for segment in first["segments"] if segment["supervised"]] == ["Me <b>&.<|im_end|>"]
    assert first["text"].startswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe <b>&.<|im_end|>")


def test_preview_of_preferences(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": "q", "chosen": "good", "rejected": "bad"}
    entry = {"ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    run_preview(make([row], entry, stage="dpo"), format="json")
    facts = json.loads(capsys.readouterr().out)
    keys = ("text", "input_ids", "labels", "segments")
    assert {f"{side}_{key}" for side in ("chosen", "rejected") for key in keys} <= set(facts)
    assert "good" in facts["chosen_text"]
    assert "bad" in facts["rejected_text"]


def test_preview_text_marks_what_is_learnt(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_preview(make([{**GOOD, "output": "Me, " * 50}], cutoff_len=40))
    out = capsys.readouterr().out
    assert re.search(r"--- 0: a\.json:1, 40 tokens, \d+ supervised, truncated", out)
    assert "[[Me, Me, " in out
    assert "<|im_end|>]]" not in out


def test_text_in_colour_shows_weights_and_no_control_characters() -> None:
    segments = [Segment("ask\x1b[2J", 0.0), Segment("yes", 1.0), Segment("half", 0.5)]
    shown = Shown(0, "a.json:1", [Side("", "", [1], [1], segments)], truncated=False)
    text = to_text(shown, colour=True)
    assert "\x1b[32myes\x1b[0m" in text
    assert "\x1b[33m(x0.5)half\x1b[0m" in text
    assert "ask\\x1b[2J" in text


def test_preview_html_is_one_escaped_page(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_preview(make([{**GOOD, "instruction": "<script>alert(1)</script>"}]), format="html")
    page = capsys.readouterr().out
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert "script" not in tags
    assert "&lt;script&gt;" in page
    assert '<span class="learnt">Me &lt;b&gt;&amp;.' in page
    assert not re.search(r"(src|href)=", page)


WEIGHTED = {
    "conversations": [
        {"from": "human", "value": "Long " * 30},
        {"from": "gpt", "value": "half", "loss": 0.5},
        {"from": "human", "value": "Who?"},
        {"from": "gpt", "value": "Me. " * 30},
    ]
}


def test_preview_marks_truncated_and_weighted_tokens(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make([WEIGHTED], {"formatting": "sharegpt"}, cutoff_len=90)
    run_preview(config, format="json")
    facts = json.loads(capsys.readouterr().out)
    run_preview(make([WEIGHTED], {"formatting": "sharegpt"}), format="json")
    uncut = json.loads(capsys.readouterr().out)
    segments = facts["segments"]
    kept = [segment for segment in segments if not segment.get("truncated")]
    lost = [segment for segment in segments if segment.get("truncated")]
    assert "".join(segment["text"] for segment in kept) == facts["text"]
    assert "".join(segment["text"] for segment in segments) == uncut["text"]
    assert lost[-1] == {"text": lost[-1]["text"], "supervised": False, "truncated": True}
    assert lost[-1]["text"].endswith("Me. <|im_end|>\n")
    assert [segment["weight"] for segment in segments if segment["text"].startswith("half")] == [0.5]
    assert not any(segment.get("truncated") for segment in uncut["segments"])
    run_preview(config, format="html")
    page = capsys.readouterr().out
    assert '<span class="weighted"><sup>×0.5</sup>half' in page
    assert re.search(r'<span class="truncated">[^<]*&lt;\|im_end\|&gt;\n</span></pre>', page)
    run_preview(config)
    assert re.search(r"\[\[\(x0\.5\)half.*\{--.*Me\. <\|im_end\|>\n--\}", capsys.readouterr().out, re.DOTALL)


def test_lost_tokens_are_found_anywhere() -> None:
    assert lost_runs([1, 2], [1, 2]) == {}
    assert lost_runs([1, 2, 5, 6], [1, 2, 3, 4, 5, 6, 7]) == {2: [3, 4], 4: [7]}
    assert lost_runs([5], [1, 5]) == {0: [1]}


def test_loss_weights_without_effect_are_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    row = {**WEIGHTED, "conversations": WEIGHTED["conversations"][:-1], "chosen": {"from": "gpt", "value": "a"}}
    row["rejected"] = {"from": "gpt", "value": "b"}
    entry = {"formatting": "sharegpt", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    logging.getLogger("llamafactory").addHandler(caplog.handler)
    notice.cache_clear()
    run_preview(make([row, row], entry, stage="dpo"))
    told = [message for message in caplog.messages if "have no effect" in message]
    logging.getLogger("llamafactory").removeHandler(caplog.handler)
    assert told == [told[0]]
    assert told[0].startswith("a: `loss` and `weight` of messages have no effect here")


def test_preview_names_bad_and_dropped_rows(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_preview(make([{"instruction": "q"}, {**GOOD, "output": "long " * 50}, GOOD], cutoff_len=30, truncation="drop"))
    told = capsys.readouterr()
    assert "a.json:1: field 'output'" in told.err
    assert "a.json:2: dropped, longer than cutoff_len" in told.err
    assert "--- 0: a.json:3" in told.out


def test_stats(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**GOOD, "output": "word " * length} for length in (1, 5, 200)]
    config = make(rows, cutoff_len=64, val_size=0.5)
    run_stats(config)
    out = capsys.readouterr().out
    assert "a: 3 of 3 rows kept; 1 truncated (first: a.json:3)" in out
    assert re.search(r"train: 3 rows, tokens p50 \d+, p95 \d+, max 64", out)
    run_stats(config, limit=2, format="json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["train"]["rows"] == 2
    assert 0 < facts["report a"]["supervised_ratio"] < 1


def test_build(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="tokenized_path: not given"):
        run_build(make([GOOD]))
    folder = tmp_path / "tokens"
    run_build(make([GOOD] * 5, tokenized_path=str(folder), val_size=2))
    assert capsys.readouterr().out == f"{folder}: train: 3 rows, validation: 2 rows\n"
    assert (folder / "dataset_dict.json").is_file()


@pytest.mark.parametrize("command", [run_check, run_stats])
def test_form_that_a_command_lacks(make: Make, command: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=r"--format: 'html' is not a form .*choose from text, json"):
        command(make([GOOD]), format="html")
