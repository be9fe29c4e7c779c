"""Traces and times of modules are written where the options say; a name that fits nothing is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.training.models import tiny_model
from tests.training.runs import logged, make_trainer, run_config

from llamafactory.errors import ConfigError
from llamafactory.models.checkpointing import enable_checkpointing


def test_traces_and_times_change_no_number(tmp_path: Path) -> None:
    plain = make_trainer(run_config(tmp_path / "plain", max_steps=4))
    plain.train()
    watched = {
        "enable_torch_profiler": True, "profiler_with_stack": False, "profiler_repeat": 2, "profiler_wait_steps": 0,
        "profile_modules": ("model.layers.*.mlp", "lm_head"),
    }  # fmt: skip
    trainer = make_trainer(run_config(tmp_path / "watched", max_steps=4, **watched))
    trainer.train()
    assert logged(trainer) == logged(plain)
    folder = tmp_path / "watched" / "profiler" / "rank_0"
    traces = sorted(folder.glob("*.pt.trace.json"))
    assert [file.name for file in traces] == ["step_2.pt.trace.json", "step_4.pt.trace.json"]
    assert any("aten::" in event["name"] for event in json.loads(traces[0].read_text())["traceEvents"])
    lines = [json.loads(line) for line in (folder / "module_times.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["modules"].keys() == {"model.layers.0.mlp", "model.layers.1.mlp", "lm_head"}
    for times in lines[1]["modules"].values():
        assert times["forward_ms"] > 0 and times["backward_ms"] > 0 and times["calls"] == 1


def test_recomputed_modules_count_twice(tmp_path: Path) -> None:
    model = tiny_model()
    enable_checkpointing(model, reentrant=False)
    config = run_config(
        tmp_path, max_steps=1, profiler_output_dir=str(tmp_path / "here"), profile_modules=("*.0.self_attn",)
    )
    make_trainer(config, model).train()
    (line,) = (tmp_path / "here" / "rank_0" / "module_times.jsonl").read_text().splitlines()
    assert json.loads(line)["modules"]["model.layers.0.self_attn"]["calls"] == 2


def test_a_run_too_short_for_a_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(run_config(tmp_path, max_steps=1, enable_torch_profiler=True)).train()
    assert "enable_torch_profiler: the run ended before a round was recorded; lower profiler_wait_steps" in caplog.text


def test_a_name_of_no_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"profile_modules: mlpp is the name of no module here .such as model,"):
        make_trainer(run_config(tmp_path, max_steps=1, profile_modules=("mlpp",))).train()
