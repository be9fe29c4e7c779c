"""Real groups of processes on loopback: endings, failures, signals, leftovers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llamafactory.launch import launch
from llamafactory.launch.plan import LaunchPlan

pytestmark = pytest.mark.slow

PROBE = """
    import json, os, socket, subprocess, sys, time
    from pathlib import Path
    from llamafactory import failure
    from llamafactory.errors import DataError

    def listening():
        ports = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    ports.add((fields[1].rpartition(":")[0], int(fields[1].rpartition(":")[2], 16)))
        return sorted(ports)

    def reduce():
        import torch, torch.distributed as dist
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.barrier()
        size = dist.get_world_size()
        dist.destroy_process_group()
        assert total.item() == size
        return size

    def main(mode, folder, *rest):
        rank = int(os.environ["RANK"])
        if mode == "reduce":
            size = reduce()
            port = int(os.environ["MASTER_PORT"])
            found = {"size": size, "argv": sys.argv[1:], "port": port, "listening": listening()}
            Path(folder, f"seen-{rank}.json").write_text(json.dumps(found))
        if mode == "boom" and rank == 1:
            raise RuntimeError("the second rank exploded")
        if mode == "boom":
            time.sleep(1)
            raise ConnectionError("connection closed by peer")
        if mode == "mistake":
            raise DataError("dataset: the file 'x.json' does not exist; check dataset_dir")
        if mode == "vanish":
            os.kill(os.getpid(), 9)
        if mode == "sleep":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            Path(folder, f"ready-{rank}").write_text(str(os.getpid()))
            time.sleep(600)
        if mode == "stubborn":
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            Path(folder, f"ready-{rank}").write_text(str(os.getpid()))
            time.sleep(600)

    try:
        main(*sys.argv[1:])
    except Exception as error:
        failure.record(None, error)
        sys.exit(failure.describe(error).exit_code)
"""

PARENT = """
    import sys
    from pathlib import Path
    from llamafactory.launch import launch
    from llamafactory.launch.plan import LaunchPlan

    out, mode = sys.argv[1:]
    sys.exit(launch(LaunchPlan(2), [mode, out], output_dir=Path(out), worker="probe_worker", grace_seconds=2.0))
"""


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker module that the group's processes can import; returns a folder whose name has a space in it."""
    (tmp_path / "probe_worker.py").write_text(textwrap.dedent(PROBE), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out folder"
    out.mkdir()
    return out


def run(out: Path, *argv: str, plan: LaunchPlan | None = None) -> int:
    return launch(plan or LaunchPlan(2), [*argv], output_dir=out, worker="probe_worker")


def living(pattern: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                if pattern.encode() in (entry / "environ").read_bytes() and (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def test_a_group_reduces_over_loopback_and_arguments_arrive_whole(probe: Path) -> None:
    hostile = "a b; $(touch canary) 'quote"
    assert run(probe, "reduce", str(probe), hostile) == 0
    seen = [json.loads((probe / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["size"] for one in seen] == [2, 2]
    assert seen[0]["argv"] == ["reduce", str(probe), hostile]
    assert not (probe / "error.json").exists()
    if sys.platform == "linux":
        assert [address for address, port in seen[0]["listening"] if port == seen[0]["port"]] == ["0100007F"]


def test_the_first_failure_is_the_last_thing_printed(probe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(probe, "boom", str(probe)) == 1
    printed = capfd.readouterr().err
    assert printed.rstrip().endswith("rank 1 of 2: RuntimeError: the second rank exploded")
    report = json.loads((probe / "error.json").read_text(encoding="utf-8"))
    assert (report["rank"], report["type"], report["status"]) == (1, "RuntimeError", "failed")
    assert report["message"] == "the second rank exploded"
    assert report["frames"][-1]["function"] == "main"
    assert "connection closed by peer" not in json.dumps(report)


def test_a_user_error_is_one_sentence_and_code_2(probe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(probe, "mistake", str(probe)) == 2
    last = capfd.readouterr().err.rstrip().splitlines()[-1]
    assert last == "dataset: the file 'x.json' does not exist; check dataset_dir"
    assert json.loads((probe / "error.json").read_text())["key"] == "dataset"


def test_a_death_without_python_error_is_reported(probe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(probe, "vanish", str(probe)) == 1
    printed = capfd.readouterr().err
    assert "exit code -9" in printed
    assert "memory ran out" in printed.rstrip().splitlines()[-1]


def test_a_busy_port_is_named(probe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert run(probe, "reduce", str(probe), plan=LaunchPlan(1, port=port)) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err.rstrip().splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="leftovers are found through /proc")
@pytest.mark.parametrize(
    ("mode", "number", "code"),
    [("sleep", signal.SIGINT, 130), ("sleep", signal.SIGTERM, 143), ("stubborn", signal.SIGTERM, 143)],
)
def test_a_signal_leaves_no_process_behind(probe: Path, mode: str, number: signal.Signals, code: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(probe), mode], stderr=subprocess.PIPE)
    ready = [probe / f"ready-{rank}" for rank in (0, 1)]
    deadline = time.monotonic() + 90
    while not all(path.exists() for path in ready):
        assert time.monotonic() < deadline, "the group did not start"
        assert parent.poll() is None
        time.sleep(0.1)
    parent.send_signal(number)
    _, printed = parent.communicate(timeout=20)
    assert parent.returncode == code
    assert number.name in printed.decode().rstrip().splitlines()[-1]
    assert json.loads((probe / "error.json").read_text())["status"] == "aborted"
    assert living(f"PYTHONPATH={probe.parent}") == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of a parent's death on Linux")
def test_a_killed_parent_takes_its_group_along(probe: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(probe), "sleep"])
    deadline = time.monotonic() + 90
    while not all((probe / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    numbers = [int((probe / f"ready-{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < deadline, "workers outlived their launcher"
        time.sleep(0.2)
    for left in living(f"PYTHONPATH={probe.parent}"):
        os.kill(int(left), signal.SIGKILL)


def test_two_nodes_meet_at_the_named_address(probe: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = textwrap.dedent(PARENT).replace("LaunchPlan(2)", f"LaunchPlan(1, 2, 2, node_rank=NODE, port={port})")
    nodes = [
        subprocess.Popen([sys.executable, "-c", code.replace("NODE", str(rank)), str(probe), "reduce"])
        for rank in (0, 1)
    ]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    assert json.loads((probe / "seen-1.json").read_text())["size"] == 2
