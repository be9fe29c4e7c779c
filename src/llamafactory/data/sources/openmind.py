"""Data sets of the Modelers hub, through its own client (package `openmind_hub`): a snapshot, read like a local "
"copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import Access, NamedRow, Position
from llamafactory.data.sources.hf import load_split
from llamafactory.errors import DataError
from llamafactory.parts import require

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class OpenMindRows:
    """Rows of one split. Prepared data is known by id alone; overwrite_cache renews it."""

    entry: DatasetEntry
    access: Access

    def fingerprint(self) -> str:
        entry = self.entry
        return f"openmind {entry.location} {entry.subset} {entry.split} {entry.folder}"

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        for index, row in enumerate(self._rows):
            if index % parts == part:
                yield f"{self.entry.location}:{index + 1}", row

    @cached_property
    def _rows(self) -> Iterable[Any]:
        from openmind_hub import snapshot_download

        entry, access = self.entry, self.access
        try:
            folder = snapshot_download(
                entry.location,
                repo_type="dataset",
                token=access.om_token,
                cache_dir=None if access.cache_dir is None else str(access.cache_dir),
            )
        except Exception as error:  # the client raises its own, undocumented kinds
            raise DataError(
                f"{entry.name}: cannot fetch {entry.location} from the Modelers hub ({error}); check the id, the "
                "network and om_hub_token"
            ) from error
        return load_split(folder, entry, replace(access, hf_token=None))


def load(entry: DatasetEntry, access: Access) -> OpenMindRows:
    """Describe the rows of `entry`. Raises MissingPackageError without the client."""
    require("openmind_hub", f"{entry.name}: om_hub_url", extra="openmind")
    return OpenMindRows(entry, access)
