"""`llamafactory-cli train` in groups of processes: one node or two, success and failure."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in ("one", "two", "three", "four")] * 4


@pytest.fixture
def config(model_dir: Path, tmp_path: Path) -> Path:
    """A run of two steps on eight examples, in a folder whose name has a space."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    keys = {
        "model_name_or_path": str(model_dir),
        "template": "chatml",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "do_train": True,
        "finetuning_type": "lora",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    path = folder / "my run.yaml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


def start(config: Path, output: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, "-m", "llamafactory", "train", str(config), f"output_dir={output}", *words],
        env={**known, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def test_two_nodes_compute_what_two_processes_of_one_node_compute(config: Path, tmp_path: Path) -> None:
    together, apart = tmp_path / "one node", tmp_path / "two nodes"
    finish(start(config, together, FORCE_TORCHRUN="1", NPROC_PER_NODE="2"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"FORCE_TORCHRUN": "1", "NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [start(config, apart, **group, NODE_RANK=rank) for rank in ("0", "1")]
    for node in nodes:
        finish(node)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (together, apart))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(bool(tensor.any()) for name, tensor in first.items() if "lora_B" in name)
    lines = (together / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["current_steps"] for line in lines][:2] == [1, 2]
    assert not (together / "error.json").exists()


def test_a_mistake_in_the_data_is_the_last_line_and_is_kept(config: Path, tmp_path: Path) -> None:
    broken = [*ROWS, {"instruction": "no output"}]
    (config.parent / "rows.json").write_text(json.dumps(broken), encoding="utf-8")
    process = start(config, tmp_path / "out", FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 2, printed
    report = json.loads((tmp_path / "out" / "error.json").read_text(encoding="utf-8"))
    assert report["type"] == "llamafactory.errors.DataError"
    assert "rows.json:17" in report["message"]
    assert printed.rstrip().endswith(report["message"].rstrip())


def test_a_single_process_keeps_its_failure_too(config: Path, tmp_path: Path) -> None:
    (config.parent / "rows.json").write_text("[]", encoding="utf-8")
    process = start(config, tmp_path / "out")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 2, printed
    report = json.loads((tmp_path / "out" / "error.json").read_text(encoding="utf-8"))
    assert report["exit_code"] == 2
    assert printed.rstrip().endswith(report["message"].rstrip())


@pytest.mark.skipif(sys.platform != "linux", reason="leftovers are found through /proc")
def test_an_interrupted_run_leaves_no_process_behind(config: Path, tmp_path: Path) -> None:
    output, mark = tmp_path / "out", f"interrupted-{os.getpid()}"
    words = ["max_steps=100000", "dataloader_num_workers=1", "preprocessing_num_workers=2"]
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "TEST_MARK": mark}
    process = start(config, output, *words, **environment)
    log = output / "trainer_log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text(encoding="utf-8").count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert time.monotonic() - begin < 12
    assert process.returncode == 130, printed
    assert printed.rstrip().splitlines()[-1].startswith("SIGINT: the run was stopped")
    assert json.loads((output / "error.json").read_text(encoding="utf-8"))["status"] == "aborted"
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if _holds(path, mark)]
    assert left == []


def _holds(path: Path, mark: str) -> bool:
    try:
        return f"TEST_MARK={mark}".encode() in path.read_bytes().split(b"\0")
    except OSError:
        return False
