"""The way a global batch is split changes neither loss nor update nor evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.models import examples
from tests.training.runs import UNEVEN, logged, make_trainer, run_config

ROOT = Path(__file__).parents[2]
# 20 examples in global batches of 8: the last update of each epoch has 4.
BASE: dict[str, object] = {"max_steps": 6, "weight_decay": 0.1}


def split(size: int, accumulation: int) -> dict[str, object]:
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}


def run_group(folder: Path, processes: int, **options: object) -> list[list[float]]:
    """Train in `processes` processes over gloo; returns the log of the first."""
    folder.mkdir(exist_ok=True)
    text = json.dumps({"folder": str(folder), **BASE, **options})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, "-m", "tests.training.split_worker", text]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000]
    return json.loads((folder / "log.json").read_text(encoding="utf-8"))


def close(left: list[list[float]] | list[tuple[float, ...]], right: list[tuple[float, ...]]) -> bool:
    flat_left, flat_right = [value for row in left for value in row], [value for row in right for value in row]
    return flat_left == pytest.approx(flat_right, abs=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    """The log of the run that takes each global batch in one piece."""
    trainer = make_trainer(run_config(tmp_path_factory.mktemp("whole"), **BASE, **split(8, 1)))
    trainer.train()
    return logged(trainer)


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_changes_nothing(
    tmp_path: Path, whole: list[tuple[float, ...]], size: int, accumulation: int
) -> None:
    trainer = make_trainer(run_config(tmp_path, **BASE, **split(size, accumulation)))
    trainer.train()
    assert close(logged(trainer), whole)


def test_a_mean_of_means_would_be_noticed(tmp_path: Path, whole: list[tuple[float, ...]]) -> None:
    trainer = make_trainer(run_config(tmp_path, **BASE, **split(2, 4)))
    compute_loss = trainer.compute_loss

    def mean_of_means(model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        return compute_loss(model, inputs, return_outputs, trainer.objective.count(inputs)) / 4

    trainer.compute_loss = mean_of_means
    trainer.train()
    assert not close(logged(trainer), whole)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_layouts_agree(tmp_path: Path, layout: str) -> None:
    logs = []
    for size in (8, 2):
        config = run_config(tmp_path, **BASE, **split(size, 8 // size), batch_layout=layout, disable_shuffling=True)
        trainer = make_trainer(config)
        trainer.train()
        logs.append(logged(trainer))
    assert close(logs[0], logs[1])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_two_processes_change_nothing(
    tmp_path: Path, whole: list[tuple[float, ...]], size: int, accumulation: int
) -> None:
    assert close(run_group(tmp_path / "group", 2, **split(size, accumulation)), whole)
    alone = make_trainer(run_config(tmp_path / "alone", **BASE, **split(8, 1)), evals={"v": examples(UNEVEN[:7])})
    alone.train()
    metrics = alone.evaluate()
    group = json.loads((tmp_path / "group" / "eval.json").read_text(encoding="utf-8"))
    assert group["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert group["eval_perplexity"] == pytest.approx(metrics["eval_perplexity"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_read_a_stream(tmp_path: Path) -> None:
    options = split(2, 1) | {"streaming": True}
    config = run_config(tmp_path / "alone", **BASE | split(4, 1), disable_shuffling=True)
    trainer = make_trainer(config)
    trainer.train()
    assert close(run_group(tmp_path / "group", 2, **options), logged(trainer))


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    options = split(2, 2) | {"lora": True, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    straight = run_group(tmp_path / "straight", 2, **options)
    halted = run_group(tmp_path / "halted", 2, **options | {"max_steps": 3})
    assert halted == straight[:3]
    assert run_group(tmp_path / "halted", 2, **options, resume=True) == straight
