"""Two processes sample, whiten and learn as one does, and resume exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.ppo_runs import ppo_trainer
from tests.training.ppo_worker import NAMES
from tests.training.runs import logged
from tests.training.test_splits import ROOT, close

OPTIONS: dict[str, object] = {
    "max_steps": 5, "ppo_buffer_size": 2, "ppo_score_norm": True, "ppo_whiten_rewards": True, "ppo_target": 0.5,
}  # fmt: skip


def run_group(folder: Path, **options: object) -> list[list[float]]:
    """Train in two processes over gloo; returns the log of the first."""
    folder.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.training.ppo_worker", json.dumps({"folder": str(folder), **OPTIONS, **options})]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "log.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    alone = ppo_trainer(tmp_path / "alone", **OPTIONS, per_device_train_batch_size=8)
    alone.train()
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    saved = {"save_strategy": "steps", "save_steps": 3}
    straight = run_group(tmp_path / "group", **split, **saved)
    assert close(straight, logged(alone, *NAMES))
    run_group(tmp_path / "half", **split, **saved, max_steps=3)
    assert run_group(tmp_path / "half", **split, **saved, resume=True) == straight
