"""Checkpoint folders: written aside, synced to disk, listed with hashes and renamed into place, so none is ever torn.

Knows folders and files, not what is in them; the trainer fills the staging folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llamafactory.errors import CheckpointError
from llamafactory.logs import get_logger

logger = get_logger(__name__)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
SCHEDULER = "scheduler.json"
SCALER = "scaler.json"
STAGING_PREFIX, REPLACED_PREFIX, TRASH_PREFIX = ".staging-", ".replaced-", ".trash-"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint says about the run it belongs to.

    resumable: optimizer, schedule and random number state are there. native: they are in the files this module names
    (a sharding library writes its own). global_batch_size in examples per update.
    """

    step: int
    resumable: bool
    native: bool
    world_size: int
    global_batch_size: int
    num_examples: int | None
    seed: int


def rank_file(rank: int) -> str:
    """Name of the file with the random number state and running sums of one process."""
    return f"rng_state_{rank}.safetensors"


def checkpoint_step(folder: Path) -> int:
    """The number in `checkpoint-<step>`; -1 for another name."""
    match = _NAME.match(folder.name)
    return int(match.group(1)) if match else -1


def checkpoints(output_dir: Path) -> list[Path]:
    """All `checkpoint-<step>` folders, newest (highest step) first, complete or not."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and checkpoint_step(path) >= 0]
    return sorted(found, key=checkpoint_step, reverse=True)


def find_resumable(output_dir: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint, and the newer ones that were skipped, each with the reason."""
    skipped: list[tuple[Path, str]] = []
    for folder in checkpoints(Path(output_dir)):
        reason = why_not_resumable(folder)
        if reason is None:
            return folder, skipped
        skipped.append((folder, reason))
    return None, skipped


def why_not_resumable(folder: Path) -> str | None:
    """None when training can go on from `folder` exactly; otherwise why not."""
    damage = find_damage(folder)
    if damage is not None:
        return damage
    if not read_facts(folder).resumable:
        return "it holds weights only (save_only_model), without optimizer and random number state"
    return None


def find_damage(folder: Path, *, hashes: bool = True) -> str | None:
    """None when every file of the manifest is there and unchanged; otherwise what is wrong."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        foreign = (folder / "optimizer.pt").is_file() or (folder / "training_args.bin").is_file()
        return (
            "it was written by another program, whose pickled state is not loaded"
            if foreign
            else f"it has no {MANIFEST}: it was not saved completely"
        )
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, entry in sorted(entries.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    changed = (name for name, entry in sorted(entries.items()) if hashes and _sha256(folder / name) != entry["sha256"])
    return next((f"{name} has changed since it was saved" for name in changed), None)


def read_facts(folder: Path) -> Facts:
    """What the manifest of a complete checkpoint says."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Facts(**content["facts"])


def check_resumable(folder: Path, *, weights_only_allowed: bool) -> Facts:
    """Raise CheckpointError unless training can go on from `folder`; returns its facts.

    weights_only_allowed: accept a checkpoint without optimizer state; the optimizer and schedule then start anew.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"resume_from_checkpoint: the folder '{folder}' does not exist; give an existing checkpoint-N folder"
        )
    damage = find_damage(folder)
    if damage is not None:
        raise CheckpointError(
            f"resume_from_checkpoint: '{folder}' cannot be used, because {damage}; give another checkpoint-N folder"
        )
    facts = read_facts(folder)
    if not facts.resumable and not weights_only_allowed:
        raise CheckpointError(
            f"resume_from_checkpoint: '{folder}' holds weights only, so optimizer, learning rate and random numbers "
            "would silently start anew; set save_only_model: true to accept that, or take it as the model of a new run"
        )
    if not facts.resumable:
        logger.warning("Going on from weights only: optimizer and learning-rate schedule start anew")
    return facts


def staging_folder(output_dir: Path, step: int) -> Path:
    """Where a checkpoint is written before it is complete."""
    return output_dir / f"{STAGING_PREFIX}checkpoint-{step}"


def begin(stage: Path) -> None:
    """Create an empty staging folder."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)


def discard(stage: Path) -> None:
    """Remove a staging folder whose writing failed."""
    shutil.rmtree(stage, ignore_errors=True)


def commit(stage: Path, target: Path, facts: Facts) -> None:
    """Sync the staged files, list them in the manifest and rename the folder to `target`, replacing it."""
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    entries = {
        path.relative_to(stage).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    manifest = stage / MANIFEST
    manifest.write_text(json.dumps({"facts": asdict(facts), "files": entries}, indent=2), encoding="utf-8")
    for path in (*files, manifest, *(folder for folder in stage.rglob("*") if folder.is_dir()), stage):
        _sync(path)
    replaced = target.with_name(f"{REPLACED_PREFIX}{target.name}")
    if target.exists():
        Path(target).replace(replaced)
    Path(stage).replace(target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def clean(output_dir: Path) -> None:
    """Remove what an interrupted run left behind; a checkpoint that was just being replaced is put back."""
    for path in list(output_dir.glob(".*")) if output_dir.is_dir() else []:
        if path.name.startswith(REPLACED_PREFIX):
            target = output_dir / path.name.removeprefix(REPLACED_PREFIX)
            if not target.exists():
                Path(path).replace(target)
        if path.name.startswith((STAGING_PREFIX, REPLACED_PREFIX, TRASH_PREFIX)):
            shutil.rmtree(path, ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, keep: Iterable[Path]) -> None:
    """Delete the oldest complete checkpoints beyond `limit`, never the newest one nor those in `keep`.

    Incomplete folders are neither counted nor touched. With a best checkpoint to keep, limit 1 leaves two.
    """
    complete = [path for path in checkpoints(output_dir) if find_damage(path, hashes=False) is None]
    if not limit or len(complete) <= limit:
        return
    kept = {complete[0].resolve(), *(path.resolve() for path in keep)}
    surplus = len(complete) - limit
    for path in [path for path in reversed(complete) if path.resolve() not in kept][:surplus]:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; interrupted half-way, no torn checkpoint is left."""
    trash = checkpoint.with_name(f"{TRASH_PREFIX}{checkpoint.name}")
    Path(checkpoint).replace(trash)
    shutil.rmtree(trash, ignore_errors=True)


def check_space(output_dir: Path, checkpoint_bytes: int, *, num_kept: int | None) -> None:
    """Compare the room on the volume of `output_dir` with what checkpoints will take.

    num_kept: checkpoints that will lie there together, None when unknown. Raises CheckpointError when not one fits;
    warns when all together do not (one more than num_kept, as a new one is written before the oldest is deleted).
    """
    free = shutil.disk_usage(output_dir).free
    if checkpoint_bytes > free:
        raise CheckpointError(
            f"output_dir: a checkpoint takes about {_size(checkpoint_bytes)}, but '{output_dir}' has {_size(free)} "
            "left; free some space, choose another output_dir, or set save_only_model: true or save_strategy: no"
        )
    needed = checkpoint_bytes * ((num_kept or 0) + 1)
    if needed > free:
        logger.warning(
            "Checkpoints will take about %s, but '%s' has %s left; save_total_limit sets how many are kept",
            _size(needed), output_dir, _size(free),
        )  # fmt: skip


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
