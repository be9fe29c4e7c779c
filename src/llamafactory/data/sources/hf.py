"""Data sets of the Hugging Face hub, through the datasets library: subset, split, folder and streaming included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import Access, NamedRow, Position
from llamafactory.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class HubRows:
    """Rows of one split of a hub data set; downloaded at the first read, unless streaming."""

    entry: DatasetEntry
    access: Access

    def fingerprint(self) -> str:
        """The commit that the data comes from, so that a new upload is a new data set; works offline from the cache."""
        return f"{self.entry.location}@{self._commit()} {self.entry.subset} {self.entry.split} {self.entry.folder}"

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        rows = self._rows
        if position is not None and not self.access.streaming:
            position.total = len(rows)
        for index, row in enumerate(rows):
            if position is not None:
                position.done = index + 1
            if index % parts == part:
                yield f"{self.entry.location}:{index + 1}", row

    @cached_property
    def _rows(self) -> Dataset | IterableDataset:
        return load_split(self.entry.location, self.entry, self.access)

    def _commit(self) -> str:
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            sha = HfApi(token=self.access.hf_token).dataset_info(self.entry.location).sha
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
            cached = try_to_load_from_cache(
                self.entry.location, "README.md", repo_type="dataset", cache_dir=self.access.cache_dir
            )
            return cached.split("/snapshots/")[-1].split("/")[0] if isinstance(cached, str) else "offline"
        return str(sha)


def load(entry: DatasetEntry, access: Access) -> HubRows:
    """Describe the rows of `entry`; nothing is fetched yet."""
    return HubRows(entry, access)


def load_split(path: str, entry: DatasetEntry, access: Access) -> Dataset | IterableDataset:
    """Load one split of a hub id or a local snapshot. Raises DataError when it cannot be had."""
    from datasets import load_dataset

    try:
        return load_dataset(
            path,
            name=entry.subset,
            data_dir=entry.folder,
            split=entry.split,
            cache_dir=None if access.cache_dir is None else str(access.cache_dir),
            token=access.hf_token,
            streaming=access.streaming,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if "script" in str(error):
            raise DataError(
                f"{entry.name}: {entry.location} is built by a loading script, which is code that the datasets "
                "library no longer runs; use a copy of the data in Parquet or JSON form"
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{entry.name}: cannot load split {entry.split!r} of {entry.location} ({reason[0]}); check the id, "
            "subset, split and folder of its entry, the network and hf_hub_token"
        ) from error
