"""Start one process per device: `maybe_launch` decides, starts them with torch's launcher, reports how they ended.

The only room that reads the launch environment (FORCE_TORCHRUN, NNODES, NODE_RANK ...). Knows no trainer.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory import failure
from llamafactory.launch.plan import LaunchPlan, build_command, build_environment, read_plan
from llamafactory.launch.supervise import MARKER_VARIABLE, Ending, supervise
from llamafactory.logs import get_logger

if TYPE_CHECKING:
    from llamafactory.config import RunConfig

logger = get_logger(__name__)

__all__ = ["maybe_launch"]

WORKER = "llamafactory.launch.worker"


def maybe_launch(config: RunConfig, argv: Sequence[str]) -> int | None:
    """Run `train` with the arguments `argv` in a group of processes; returns its exit code, None to run it right here.

    argv: what follows `llamafactory-cli train`. Raises ConfigError when the launch variables contradict each other.
    """
    use_cpu = config.training.use_cpu
    plan = read_plan(os.environ, count_devices=lambda: 0 if use_cpu else _count_devices())
    if plan is None:
        return None
    return launch(plan, argv, output_dir=Path(str(config.training.output_dir)))


def launch(
    plan: LaunchPlan, argv: Sequence[str], *, output_dir: Path, worker: str = WORKER, grace_seconds: float = 8.0
) -> int:
    """Start the group, wait for it, and make the first failure the last thing on the terminal."""
    marker = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="llamafactory-") as reports:
        command = build_command(plan, argv, worker=worker, log_dir=output_dir / "rank_logs")
        environment = build_environment(plan, os.environ)
        environment |= {MARKER_VARIABLE: marker, failure.REPORT_FOLDER_VARIABLE: reports}
        logger.info("Starting %s", plan)
        ending = supervise(command, environment, marker=marker, grace_seconds=grace_seconds)
        return _report(ending, Path(reports), output_dir)


def _report(ending: Ending, reports: Path, output_dir: Path) -> int:
    if ending.signal is None and ending.code == 0:
        return 0
    found = _aborted(ending) if ending.signal is not None else failure.earliest(reports) or _silent(ending)
    failure.write(output_dir / failure.REPORT_FILE, found)
    sys.stderr.write(f"{failure.to_text(found)}\n")
    sys.stderr.flush()
    return found.exit_code


def _aborted(ending: Ending) -> failure.Failure:
    assert ending.signal is not None
    return _own("aborted", ending.signal.name, "the run was stopped from outside", exit_code=128 + ending.signal)


def _silent(ending: Ending) -> failure.Failure:
    message = (
        f"a process ended without a Python error (launcher exit code {ending.code}): it was killed or crashed in "
        "native code, most often because memory ran out; lower per_device_train_batch_size or cutoff_len"
    )
    return _own("failed", "ProcessDied", message, exit_code=1)


def _own(status: str, kind: str, message: str, *, exit_code: int) -> failure.Failure:
    return failure.Failure(
        status=status,
        type=kind,
        message=message,
        rank=0,
        world_size=1,
        host=socket.gethostname(),
        time=time.time(),
        exit_code=exit_code,
    )


def _count_devices() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
