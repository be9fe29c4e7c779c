"""Data in object stores (s3://, gs://, gcs://): a json or jsonl file, or a folder of them, through fsspec.

Access is tried without credentials first, then with those of the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.fingerprint import digest_of
from llamafactory.data.readers import Share, read_json_file
from llamafactory.data.sources import Access, NamedRow, Position
from llamafactory.errors import DataError
from llamafactory.parts import require

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_ANONYMOUS: Mapping[str, Mapping[str, object]] = {"s3fs": {"anon": True}, "gcsfs": {"token": "anon"}}
_ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True)
class CloudRows:
    """Rows of stored objects, streamed. paths: objects in name order."""

    store: Any
    paths: Sequence[str]

    def fingerprint(self) -> str:
        """Digest of names, sizes and the store's own checksums or dates; the objects are not read."""
        facts = [self.store.info(path) for path in self.paths]
        keys = ("name", "size", "ETag", "etag", "md5Hash", "LastModified", "updated", "generation", "created")
        return digest_of([{key: str(fact[key]) for key in keys if key in fact} for fact in facts])

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        position = position or Position()
        position.total = sum(int(self.store.info(path)["size"]) for path in self.paths)
        for path in self.paths:
            with self.store.open(path, "r", encoding="utf-8-sig") as file:
                yield from read_json_file(file, Path(path).name, position, Share(part, parts))
            position.done += int(self.store.info(path)["size"])


def load(entry: DatasetEntry, access: Access) -> CloudRows:
    """Find the objects of `entry`. Raises DataError when they are missing, refused or of another kind."""
    scheme = entry.location.partition("://")[0] if "://" in entry.location else ""
    if scheme not in _PACKAGES:
        raise DataError(
            f"{entry.name}: cloud_file_name: {entry.location!r} must begin with s3://, gs:// or gcs://; for local "
            "data use file_name"
        )
    package = _PACKAGES[scheme]
    require(package, f"{entry.name}: cloud_file_name", extra="cloud")
    failures = []
    for options in (_ANONYMOUS[package], {}):
        try:
            return _find(entry, scheme, options)
        except (OSError, PermissionError) as error:
            failures.append(f"{'without' if options else 'with'} credentials: {error or type(error).__name__}")
    raise DataError(
        f"{entry.name}: cloud_file_name: cannot read {entry.location} ({'; '.join(failures)}); check the name, and the "
        "credentials in the environment"
    )


def _find(entry: DatasetEntry, scheme: str, options: Mapping[str, object]) -> CloudRows:
    import fsspec

    store = fsspec.filesystem(scheme, **options)
    found = sorted(store.find(entry.location))
    paths = [path for path in found if not Path(path).name.startswith(".") and not path.endswith("/")]
    if not paths:
        raise FileNotFoundError(f"nothing is stored at {entry.location}")
    others = [path for path in paths if not path.endswith(_ENDINGS)]
    if others:
        raise DataError(
            f"{entry.name}: cloud_file_name: {others[0]} is neither json nor jsonl, the only kinds read from object "
            "stores; convert it, or download it and use file_name"
        )
    with store.open(paths[0], "rb") as file:  # a store may show names to everyone, and contents to few
        file.read(1)
    return CloudRows(store, paths)
