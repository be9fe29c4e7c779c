"""The launch environment and the command written from it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llamafactory.errors import ConfigError
from llamafactory.launch.plan import LaunchPlan, build_command, build_environment, read_plan


def plan_for(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, devices: int = 0) -> LaunchPlan | None:
    for name in ("FORCE_TORCHRUN", "USE_RAY"):
        monkeypatch.delenv(name, raising=False)
        if name in environ:
            monkeypatch.setenv(name, environ[name])
    return read_plan(environ, count_devices=lambda: devices)


@pytest.mark.parametrize(
    ("environ", "devices", "expected"),
    [
        ({}, 0, None),
        ({}, 1, None),
        ({"FORCE_TORCHRUN": "0"}, 1, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, 4, None),
        ({"TORCHELASTIC_RUN_ID": "x", "FORCE_TORCHRUN": "1"}, 4, None),
        ({}, 4, LaunchPlan(4)),
        ({"FORCE_TORCHRUN": "1"}, 0, LaunchPlan(1)),
        ({"FORCE_TORCHRUN": "Yes", "NPROC_PER_NODE": "2"}, 0, LaunchPlan(2)),
        ({"NPROC_PER_NODE": "2"}, 0, LaunchPlan(2)),
        ({"NPROC_PER_NODE": "1"}, 8, None),
        (
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
            1,
            LaunchPlan(1, 2, 2, node_rank=1, address="10.0.0.1", port=29500),
        ),
        (
            {"RDZV_ID": "j", "MIN_NNODES": "1", "MAX_NNODES": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1",
             "MAX_RESTARTS": "2"},
            2,
            LaunchPlan(2, 1, 3, address="h", port=1, rendezvous_id="j", max_restarts=2),
        ),
    ],
)  # fmt: skip
def test_plan_follows_the_environment(
    environ: dict[str, str], devices: int, expected: LaunchPlan | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_for(environ, monkeypatch, devices) == expected


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"NNODES": "2"}, ["MASTER_ADDR and MASTER_PORT", "2 nodes", "free port of node 0"]),
        ({"NNODES": "2", "MASTER_ADDR": "h"}, ["MASTER_PORT"]),
        ({"NPROC_PER_NODE": "two"}, ["NPROC_PER_NODE", "'two'", "whole number"]),
        ({"NNODES": "0"}, ["NNODES", "'0'", "at least 1"]),
        (
            {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
            ["NODE_RANK", "from 0 to 1"],
        ),
        ({"USE_RAY": "1"}, ["USE_RAY", "not available", "NNODES"]),
        ({"MIN_NNODES": "1"}, ["MIN_NNODES and MAX_NNODES", "set both"]),
        ({"MIN_NNODES": "3", "MAX_NNODES": "2"}, ["MIN_NNODES", "lower"]),
        ({"MIN_NNODES": "1", "MAX_NNODES": "2"}, ["RDZV_ID"]),
    ],
)
def test_contradictions_name_the_variable(
    environ: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for(environ, monkeypatch)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_devices_are_counted_only_when_the_environment_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    calls: list[int] = []

    def count() -> int:
        calls.append(1)
        return 3

    assert read_plan({"NPROC_PER_NODE": "2"}, count_devices=count) == LaunchPlan(2)
    assert not calls
    assert read_plan({}, count_devices=count) == LaunchPlan(3)


def test_arguments_stay_whole_in_the_command() -> None:
    hostile = ["my run.yaml", "output_dir=a b; touch /tmp/x $(id)", "--flag", "-x"]
    command = build_command(LaunchPlan(2), hostile, worker="some.worker", log_dir=Path("out dir/logs"))
    assert command[0] == sys.executable
    assert command[-len(hostile) - 2 :] == ["-m", "some.worker", *hostile]
    assert command[command.index("--log-dir") + 1] == str(Path("out dir/logs"))
    assert command[command.index("--redirects") + 1] == "1:3"


def test_static_and_elastic_forms() -> None:
    static = build_command(LaunchPlan(1, 2, 2, node_rank=1, address="h", port=7), [], worker="w", log_dir=Path("logs"))
    assert static[static.index("--rdzv-conf") + 1] == "rank=1"
    assert static[static.index("--rdzv-endpoint") + 1] == "h:7"
    elastic = build_command(
        LaunchPlan(1, 1, 2, address="h", port=7, rendezvous_id="job", max_restarts=3),
        [],
        worker="w",
        log_dir=Path("logs"),
    )
    assert elastic[elastic.index("--nnodes") + 1] == "1:2"
    assert elastic[elastic.index("--rdzv-backend") + 1] == "c10d"
    assert elastic[elastic.index("--rdzv-id") + 1] == "job"
    assert elastic[elastic.index("--max-restarts") + 1] == "3"


def test_environment_defaults_give_way_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTIM_TORCH", raising=False)
    made = build_environment(LaunchPlan(2), {"PYTORCH_CUDA_ALLOC_CONF": "mine", "PATH": "p"})
    assert made["PYTORCH_CUDA_ALLOC_CONF"] == "mine"
    assert made["TORCH_NCCL_AVOID_RECORD_STREAMS"] == "1"
    assert made["PATH"] == "p"
    assert int(made["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OPTIM_TORCH", "0")
    assert "TORCH_NCCL_AVOID_RECORD_STREAMS" not in build_environment(LaunchPlan(1), {})


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback device is called lo on Linux")
def test_one_node_talks_over_loopback_only() -> None:
    assert build_environment(LaunchPlan(2), {})["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in build_environment(LaunchPlan(2, 2, 2), {})
