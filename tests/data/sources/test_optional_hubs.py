"""Hubs whose clients are optional say which package to install; every source offers the same function."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import SOURCES, Access
from llamafactory.errors import MissingPackageError


@pytest.mark.parametrize(
    ("source", "package", "entry"),
    [
        ("modelscope", "modelscope", {"ms_hub_url": "user/data"}),
        ("openmind", "openmind_hub", {"om_hub_url": "user/data"}),
        ("cloud", "gcsfs", {"cloud_file_name": "gs://bucket/a.json"}),
    ],
)
def test_missing_client_is_named(
    source: str, package: str, entry: dict[str, str], make_entry: Callable[..., DatasetEntry]
) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackageError, match=f"set: .*needs the package '{package}'.*pip install"):
        SOURCES.load(source).load(make_entry(**entry), Access(Path()))


def test_every_source_exports_its_contract() -> None:
    assert SOURCES.names() == ["cloud", "file", "hf", "modelscope", "openmind"]
    for name in SOURCES.names():
        assert callable(SOURCES.load(name).load)
