"""What went wrong, kept where a person finds it: `error.json` in the run's folder.

In a group of processes each one writes its own report into the folder the launcher names; the launcher keeps the
earliest, because later ones are mostly echoes ("connection closed by peer"). Knows no trainer and no launcher.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from llamafactory import env
from llamafactory.errors import LlamaFactoryError

REPORT_FILE = "error.json"
REPORT_FOLDER_VARIABLE = "LLAMAFACTORY_REPORT_FOLDER"
MAX_FRAMES = 10
USER_ERROR_CODE = 2

_KEY = re.compile(r"^(?:\S+:\d+: )?([a-z][a-z0-9_]+): ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One level of a traceback; `line` counts from 1."""

    file: str
    line: int
    function: str
    code: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a run that did not succeed.

    status: "failed" or "aborted". type: dotted name of the exception. key: the YAML key the message begins with, or
    None. frames: the innermost levels, outermost first. time: seconds since the epoch. exit_code: 2 for an error that
    is the user's to cure.
    """

    status: str
    type: str
    message: str
    rank: int
    world_size: int
    host: str
    time: float
    exit_code: int
    key: str | None = None
    frames: tuple[Frame, ...] = ()
    traceback: str = ""

    @property
    def is_user_error(self) -> bool:
        return self.exit_code == USER_ERROR_CODE


def describe(error: BaseException) -> Failure:
    """Turn an exception of this process into a report."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    user_error = isinstance(error, LlamaFactoryError)
    found = _KEY.match(str(error)) if user_error else None
    levels = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return Failure(
        status="aborted" if isinstance(error, KeyboardInterrupt) else "failed",
        type=name,
        message=str(error),
        rank=env.rank(),
        world_size=env.world_size(),
        host=socket.gethostname(),
        time=time.time(),
        exit_code=USER_ERROR_CODE if user_error else 1,
        key=found.group(1) if found else None,
        frames=tuple(Frame(level.filename, level.lineno or 0, level.name, level.line or "") for level in levels),
        traceback="".join(traceback.format_exception(error)),
    )


def record(output_dir: str | os.PathLike[str] | None, error: BaseException) -> Path | None:
    """Write the report of `error` and return where; None when there is nowhere to write.

    A process started by our launcher writes into the launcher's folder, another one to `output_dir/error.json`. In a
    group the first report stays: what follows is a consequence. Never raises: the original error must not be hidden.
    """
    folder = os.environ.get(REPORT_FOLDER_VARIABLE)
    try:
        if folder:
            return _write_new(Path(folder) / f"rank-{env.rank()}.json", describe(error))
        if output_dir is None:
            return None
        target = Path(output_dir) / REPORT_FILE
        return _write_new(target, describe(error)) if env.world_size() > 1 else write(target, describe(error))
    except OSError:
        return None


def write(path: Path, failure: Failure) -> Path:
    """Write a report, replacing an earlier one; readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staged.write_text(_to_json(failure), encoding="utf-8")
    return staged.replace(path)


def read(path: Path) -> Failure:
    """Read a report back. Raises ValueError when the file is not one."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a failure report")
    try:
        frames = tuple(Frame(**frame) for frame in content.pop("frames", ()))
        return Failure(**content, frames=frames)
    except TypeError as error:
        raise ValueError(f"'{path}' is not a failure report: {error}") from error


def earliest(folder: Path) -> Failure | None:
    """The first report that the processes of a group left in `folder`."""
    reports = []
    for path in folder.glob("rank-*.json"):
        try:
            reports.append(read(path))
        except ValueError:
            continue
    return min(reports, key=lambda report: report.time, default=None)


def to_text(failure: Failure) -> str:
    """The report for a terminal; its last line says what happened. A user's error is its sentence alone."""
    if failure.is_user_error:
        return failure.message
    where = f"rank {failure.rank} of {failure.world_size}: " if failure.world_size > 1 else ""
    levels = [f'  File "{one.file}", line {one.line}, in {one.function}\n    {one.code}' for one in failure.frames]
    return "\n".join([*levels, f"{where}{failure.type}: {failure.message}"])


def _write_new(path: Path, failure: Failure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_to_json(failure))
    except FileExistsError:
        pass
    return path


def _to_json(failure: Failure) -> str:
    return json.dumps(asdict(failure), ensure_ascii=False, indent=2) + "\n"
