"""Result files, the log file, plots and the progress line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from tests.training.models import examples
from tests.training.runs import UNEVEN, make_trainer, run_config
from transformers import TrainerControl, TrainerState, TrainingArguments

from llamafactory.training.callbacks.early_stopping import evaluations_since_best
from llamafactory.training.callbacks.log_file import LogFile
from llamafactory.training.callbacks.progress import ProgressLine
from llamafactory.training.plots import plot_history, smooth
from llamafactory.training.results import finish_training, write_results


def log_lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_files_of_a_run(tmp_path: Path) -> None:
    config = run_config(tmp_path, eval_strategy="steps", eval_steps=3, include_num_input_tokens_seen="non_padding")
    trainer = make_trainer(config, evals={"v": examples(UNEVEN[:4])})
    metrics = finish_training(trainer, trainer.train().metrics, real_tokens=True)
    assert metrics["effective_tokens_per_sec"] > 0
    assert metrics["effective_tokens_per_sec"] == pytest.approx(
        sum(UNEVEN) * metrics["epoch"] / metrics["train_runtime"], abs=0.01
    )
    write_results(tmp_path, "eval", trainer.evaluate())
    results = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json")}
    assert results.keys() == {"train_results.json", "eval_results.json", "all_results.json", "trainer_state.json"}
    assert {
        "epoch",
        "total_flos",
        "train_loss",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    } <= (results["train_results.json"].keys())
    assert {"eval_loss", "eval_perplexity", "eval_runtime"} <= results["eval_results.json"].keys()
    assert results["all_results.json"] == results["train_results.json"] | results["eval_results.json"]
    assert [entry["step"] for entry in results["trainer_state.json"]["log_history"] if "loss" in entry] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]

    lines = log_lines(tmp_path)
    first = lines[0]
    assert first.keys() == {
        "current_steps", "total_steps", "loss", "grad_norm", "lr", "epoch", "percentage", "elapsed_time",
        "remaining_time", "throughput", "total_tokens",
    }  # fmt: skip
    assert (first["current_steps"], first["total_steps"], first["percentage"]) == (1, 6, 16.67)
    assert re.fullmatch(r"\d+:\d\d:\d\d", str(first["elapsed_time"]))
    assert [line["current_steps"] for line in lines if "eval_loss" in line] == [3, 6, 6]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "trainer_log.jsonl").write_text('{"current_steps": 3}\n{"curr', encoding="utf-8")
    make_trainer(run_config(tmp_path, max_steps=2)).train()
    assert [line["current_steps"] for line in log_lines(tmp_path)] == [1, 2, 2]


def test_a_resumed_run_drops_the_lines_behind_its_checkpoint(tmp_path: Path) -> None:
    text = "".join(f'{{"current_steps": {step}, "loss": 1.0}}\n' for step in (1, 2, 3, 4)) + '{"current_st'
    (tmp_path / "trainer_log.jsonl").write_text(text, encoding="utf-8")
    state = TrainerState(global_step=2, max_steps=6, is_world_process_zero=True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    log = LogFile(tmp_path)
    log.on_train_begin(args, state, TrainerControl())
    state.global_step = 3
    log.on_log(args, state, TrainerControl(), logs={"loss": 0.5, "rewards/accuracies": 0.75})
    assert [line["current_steps"] for line in log_lines(tmp_path)] == [1, 2, 3]
    assert log_lines(tmp_path)[-1]["accuracy"] == 0.75


def test_an_evaluation_alone_reports_its_progress(tmp_path: Path) -> None:
    trainer = make_trainer(run_config(tmp_path, per_device_eval_batch_size=2), evals={"v": examples(UNEVEN)})
    trainer.evaluate()
    lines = log_lines(tmp_path)
    assert [(line["current_steps"], line["total_steps"], line["percentage"]) for line in lines[:2]] == [
        (5, 10, 50.0),
        (10, 10, 100.0),
    ]
    assert "eval_loss" in lines[-1]


def test_every_evaluation_set_is_reported_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = {"short": examples(UNEVEN[:2]), "long": examples(UNEVEN[2:])}
    config = run_config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = make_trainer(config, evals=sets)
    trainer.train()
    found = {
        name for line in log_lines(tmp_path) for name in line if name.startswith("eval") and name.endswith("_loss")
    }
    assert found == {"eval_short_loss", "eval_long_loss", "eval_loss"}
    text = " ".join(caplog.messages)
    assert "eval short loss" in text and "eval long loss" in text and "eval loss" in text


def test_plots_are_written_for_what_was_logged(tmp_path: Path) -> None:
    history = [
        {"step": step, "loss": 3 / step + 0.1 * (step % 3), "rewards/chosen": float(step)} for step in range(1, 60)
    ]
    history += [{"step": 60, "loss": float("nan")}, {"step": 30, "eval_loss": 1.0}]
    written = plot_history(history, tmp_path, ["loss", "rewards/chosen", "eval_loss", "reward"])
    assert [path.name for path in written] == ["training_loss.png", "training_rewards_chosen.png"]
    with Image.open(written[0]) as image:
        assert image.size == (640, 480) and len(image.convert("RGB").getcolors(100_000) or []) > 10


def test_smoothing_follows_the_length_of_the_series() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    # n = 2: weight 1.8 * (sigmoid(0.1) - 0.5) = 0.0449625
    assert smooth([1.0, 0.0]) == pytest.approx([1.0, 0.0449625], abs=1e-6)


def test_evaluations_since_the_best() -> None:
    assert evaluations_since_best([3.0, 2.0, 2.0, float("nan")], greater_is_better=False) == 2
    assert evaluations_since_best([1.0, 5.0, 4.0], greater_is_better=True) == 1
    assert evaluations_since_best([], greater_is_better=True) == 0


def run_progress(live: bool, quiet_seconds: float = 1000.0) -> str:
    console = Console(file=io.StringIO(), force_terminal=live, width=100)
    progress = ProgressLine(live=live, console=console, quiet_seconds=quiet_seconds)
    state = TrainerState(max_steps=30, is_world_process_zero=True)
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    progress.on_train_begin(args, state, TrainerControl())
    for step in range(1, 31):
        state.global_step = step
        progress.on_step_end(args, state, TrainerControl())
        progress.on_log(args, state, TrainerControl(), logs={"loss": 30.0 - step, "learning_rate": 1e-3})
        if step == 15:
            progress.on_prediction_step(args, state, TrainerControl(), eval_dataloader=[1, 2])
            progress.on_evaluate(args, state, TrainerControl())
    progress.on_train_end(args, state, TrainerControl())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_one_live_line() -> None:
    text = run_progress(live=True)
    assert "30/30" in text and "loss 0" in text
    assert text.count("\n") < 10


def test_a_pipe_gets_a_few_calm_lines(caplog: pytest.LogCaptureFixture) -> None:
    assert run_progress(live=False) == ""
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["step 1/30 loss 29 lr 0.001", "step 30/30 loss 0 lr 0.001"]
