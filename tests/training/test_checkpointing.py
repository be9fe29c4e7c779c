"""Checkpoints survive kills and full disks, and the right ones are kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.training.models import examples, tiny_model, with_lora
from tests.training.runs import UNEVEN, make_trainer, run_config, weights

from llamafactory.errors import CheckpointError
from llamafactory.training import checkpointing, run_state
from llamafactory.training.checkpointing import Facts, checkpoints, find_damage, find_resumable
from llamafactory.training.weight_files import saved_shapes, verify_weights

ROOT = Path(__file__).parents[2]
FACTS = Facts(step=1, resumable=True, native=True, world_size=1, global_batch_size=2, num_examples=20, seed=42)


def start(folder: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.save_worker", json.dumps({"folder": str(folder), **options})]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def write(folder: Path, step: int) -> Path:
    stage, target = checkpointing.staging_folder(folder, step), folder / f"checkpoint-{step}"
    checkpointing.begin(stage)
    (stage / "weights.safetensors").write_bytes(os.urandom(64))
    checkpointing.commit(stage, target, FACTS)
    return target


@pytest.mark.slow
def test_no_kill_leaves_an_unusable_newest_checkpoint(tmp_path: Path) -> None:
    kills, chance = int(os.environ.get("KILLS", "6")), random.Random(0)
    for number in range(kills):
        before = [path.name for path in checkpoints(tmp_path)]
        process = start(tmp_path, max_steps=100_000, save_total_limit=3, resume=bool(before))
        deadline = time.monotonic() + 120
        while [path.name for path in checkpoints(tmp_path)] == before:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 1.5))
        process.kill()
        process.wait()
        found, skipped = find_resumable(tmp_path)
        assert found is not None and not skipped, f"after kill {number + 1}: {skipped}"
        assert len(checkpoints(tmp_path)) <= 4


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_and_no_remains(tmp_path: Path) -> None:
    assert start(tmp_path, max_steps=2).wait() == 0
    process = start(tmp_path, max_steps=4, resume=True, limit_bytes=50_000)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "checkpoint-3 could not be written" in errors and "earlier checkpoints are intact" in errors
    assert find_resumable(tmp_path)[0] == tmp_path / "checkpoint-2"
    assert not list(tmp_path.glob(".staging*"))
    again = start(tmp_path, max_steps=4, resume=True)
    assert again.wait() == 0
    assert find_resumable(tmp_path)[0] == tmp_path / "checkpoint-4"


def test_a_checkpoint_lists_its_files_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = write(tmp_path, 1)
    first = (target / "weights.safetensors").read_bytes()
    assert find_damage(target) is None
    assert checkpointing.read_facts(target) == FACTS
    assert (write(tmp_path, 1) / "weights.safetensors").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    (target / "manifest.json").write_text("{", encoding="utf-8")
    assert find_damage(target) == "its manifest.json cannot be read"


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        write(tmp_path, step)
    (tmp_path / "checkpoint-12").mkdir()
    checkpointing.rotate(tmp_path, 2, keep=[tmp_path / "checkpoint-1"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-12", "checkpoint-11", "checkpoint-1"]
    checkpointing.rotate(tmp_path, 1, keep=[tmp_path / "checkpoint-1"])
    checkpointing.rotate(tmp_path, None, keep=[])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-12", "checkpoint-11", "checkpoint-1"]


def test_room_on_disk_is_checked_before_the_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match=r"a checkpoint takes about .* GiB, but .* left; free some space"):
        checkpointing.check_space(tmp_path, 2**60, num_kept=1)
    free = __import__("shutil").disk_usage(tmp_path).free
    checkpointing.check_space(tmp_path, free // 4, num_kept=5)
    assert "save_total_limit sets how many are kept" in caplog.text
    caplog.clear()
    checkpointing.check_space(tmp_path, 1000, num_kept=5)
    assert not caplog.text


def test_the_size_of_a_checkpoint_is_foreseen(tmp_path: Path) -> None:
    for name, model in {"full": tiny_model(), "lora": with_lora(tiny_model(), r=64)}.items():
        trainer = make_trainer(run_config(tmp_path / name, save_strategy="steps", save_steps=2, max_steps=2), model)
        trainer.train()
        files = (tmp_path / name / "checkpoint-2").rglob("*.safetensors")
        written = sum(path.stat().st_size for path in files if not path.name.startswith("rng"))
        assert run_state.estimate_bytes(model, with_optimizer=True) == pytest.approx(written, rel=0.25)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    options = {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 12,
        "save_total_limit": 1, "load_best_model_at_end": True, "learning_rate": 1.0, "warmup_steps": 12,
    }  # fmt: skip
    for model in (tiny_model(), with_lora(tiny_model())):
        folder = tmp_path / type(model).__name__
        trainer = make_trainer(run_config(folder, **options), model, evals={"v": examples(UNEVEN[:5])})
        trainer.train()
        best = Path(trainer.state.best_model_checkpoint)
        assert best.parent == folder and best.is_dir()
        assert trainer.state.best_global_step < 12, "the rising learning rate is meant to ruin the model"
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)
        assert best in checkpoints(folder) and len(checkpoints(folder)) <= 2


def test_saved_weights_are_compared_with_the_model(tmp_path: Path) -> None:
    for name, model in {
        "full": tiny_model(),
        "mixtral": tiny_model("mixtral"),
        "lora": with_lora(tiny_model()),
    }.items():
        model.save_pretrained(tmp_path / name)
        verify_weights(model, tmp_path / name)
        assert saved_shapes(tmp_path / name)
    with pytest.raises(CheckpointError, match="the saved weights are incomplete"):
        verify_weights(with_lora(tiny_model(), r=4), tmp_path / "lora")
    with pytest.raises(CheckpointError, match="the saved weights are incomplete"):
        verify_weights(tiny_model(num_hidden_layers=3), tmp_path / "full")


def test_a_lossy_save_stops_the_run(tmp_path: Path) -> None:
    model = with_lora(tiny_model())
    trainer = make_trainer(run_config(tmp_path, save_strategy="steps", save_steps=1), model)
    trainer._save_weights = lambda folder: with_lora(tiny_model(num_hidden_layers=1)).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="incomplete"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert checkpoints(tmp_path) == [] and not list(tmp_path.glob(".staging*"))


def test_a_checkpoint_holds_the_weights_of_its_step(tmp_path: Path) -> None:
    trainer = make_trainer(run_config(tmp_path, save_strategy="steps", save_steps=6), tiny_model())
    trainer.train()
    saved = type(trainer.model).from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.equal(value, weights(saved)[name]) for name, value in weights(trainer.model).items())
