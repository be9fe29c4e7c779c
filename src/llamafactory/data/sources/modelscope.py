"""Data sets of the ModelScope hub, through its own client (package `modelscope`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import Access, NamedRow, Position
from llamafactory.errors import DataError
from llamafactory.parts import require

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class ModelScopeRows:
    """Rows of one split. The hub names no commit, so prepared data is known by id alone; overwrite_cache renews it."""

    entry: DatasetEntry
    access: Access

    def fingerprint(self) -> str:
        entry = self.entry
        return f"modelscope {entry.location} {entry.subset} {entry.split} {entry.folder}"

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        for index, row in enumerate(self._rows):
            if index % parts == part:
                yield f"{self.entry.location}:{index + 1}", row

    @cached_property
    def _rows(self) -> Iterable[Any]:
        from modelscope import MsDataset
        from modelscope.utils.config_ds import MS_DATASETS_CACHE

        entry, access = self.entry, self.access
        try:
            found = MsDataset.load(
                dataset_name=entry.location,
                subset_name=entry.subset,
                data_dir=entry.folder,
                split=entry.split,
                cache_dir=str(access.cache_dir or MS_DATASETS_CACHE),
                token=access.ms_token,
                use_streaming=access.streaming,
            )
        except Exception as error:  # the client raises its own, undocumented kinds
            raise DataError(
                f"{entry.name}: cannot load split {entry.split!r} of {entry.location} from ModelScope ({error}); "
                "check the id, the network and ms_hub_token"
            ) from error
        return found.to_hf_dataset() if isinstance(found, MsDataset) else found


def load(entry: DatasetEntry, access: Access) -> ModelScopeRows:
    """Describe the rows of `entry`. Raises MissingPackageError without the client."""
    require("modelscope", f"{entry.name}: ms_hub_url", extra="modelscope")
    return ModelScopeRows(entry, access)
