"""Local data: one file, or a folder of files of one kind, under dataset_dir."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.readers import READERS, Share, read_file
from llamafactory.data.sources import Access, NamedRow, Position
from llamafactory.errors import DataError, did_you_mean


@dataclass(frozen=True)
class FileRows:
    """Rows of files read one after another. names: what stands for each file in row names."""

    paths: Sequence[Path]
    names: Sequence[str]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path, name in zip(self.paths, self.names, strict=True):
            with path.open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
        return digest.hexdigest()

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        position = position or Position()
        position.total = sum(path.stat().st_size for path in self.paths)
        for path, name in zip(self.paths, self.names, strict=True):
            yield from read_file(path, name, position, Share(part, parts))


def load(entry: DatasetEntry, access: Access) -> FileRows:
    """Find the files of `entry`. Raises DataError when they are missing, mixed or of an unknown kind."""
    path = access.dataset_dir / entry.location
    if path.is_dir():
        return files_in(path, where=f"{entry.name}: file_name")
    if not path.is_file():
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{entry.name}: file_name: {path} does not exist, it must be a file or folder under dataset_dir; "
            f"correct file_name or dataset_dir{did_you_mean(path.name, siblings)}"
        )
    _check_kinds([path], where=f"{entry.name}: file_name")
    return FileRows([path], [path.name])


def files_in(folder: Path, *, where: str) -> FileRows:
    """All visible files of a folder and its subfolders, in name order, as one data set."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise DataError(
            f"{where}: the folder {folder} holds no files; put json, jsonl, csv, parquet, arrow or txt files there"
        )
    _check_kinds(paths, where=where)
    return FileRows(paths, [path.relative_to(folder.parent).as_posix() for path in paths])


def _check_kinds(paths: Sequence[Path], *, where: str) -> None:
    for path in paths:
        if path.suffix.lower() not in READERS:
            raise DataError(
                f"{where}: {path} ends in {path.suffix or 'nothing'!r}, which is not a data file "
                f"(readable: {', '.join(kind[1:] for kind in READERS)}); convert or remove it"
            )
    kinds = {".json" if path.suffix.lower() == ".jsonl" else path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise DataError(
            f"{where}: the folder {paths[0].parent} mixes {', '.join(sorted(kind[1:] for kind in kinds))} files, "
            "but all files of one data set must be of one kind; move the others away"
        )
