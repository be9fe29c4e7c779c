"""Object stores, against a real S3 server on loopback: anonymous first, then with credentials."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import Access, Position
from llamafactory.data.sources.cloud import load
from llamafactory.errors import DataError

MakeEntry = Callable[..., DatasetEntry]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    server_of = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    import boto3
    import fsspec

    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield client
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def put(bucket: object, key: str, rows: object) -> None:
    bucket.put_object(Bucket="data", Key=key, Body=json.dumps(rows).encode())  # type: ignore[attr-defined]


def test_file_and_folder(bucket: object, make_entry: MakeEntry) -> None:
    put(bucket, "set/a.json", [{"n": 1}, {"n": 2}])
    put(bucket, "set/b.jsonl", {"n": 3})
    access, position = Access(Path()), Position()
    single = load(make_entry(cloud_file_name="s3://data/set/a.json"), access)
    assert list(single.read(position=position)) == [("a.json:1", {"n": 1}), ("a.json:2", {"n": 2})]
    assert position.done == position.total > 0
    folder = load(make_entry(cloud_file_name="s3://data/set"), access)
    assert [name for name, _ in folder.read()] == ["a.json:1", "a.json:2", "b.jsonl:1"]
    assert [name for name, _ in folder.read(1, 2)] == ["a.json:2"]
    before = folder.fingerprint()
    assert load(make_entry(cloud_file_name="s3://data/set"), access).fingerprint() == before
    put(bucket, "set/b.jsonl", {"n": 4})
    folder.store.invalidate_cache()
    assert folder.fingerprint() != before


@pytest.mark.parametrize(
    ("key", "location", "message"),
    [
        ("a.csv", "s3://data/a.csv", r"data/a\.csv is neither json nor jsonl"),
        ("a.json", "s3://data/b.json", r"cannot read s3://data/b\.json \(without credentials: .*; with credentials: "),
        ("a.json", "ftp://data/a.json", "must begin with s3://, gs:// or gcs://"),
        ("a.json", "data/a.json", "must begin with s3://"),
    ],
)
def test_mistakes_are_named(bucket: object, make_entry: MakeEntry, key: str, location: str, message: str) -> None:
    put(bucket, key, [])
    with pytest.raises(DataError, match=f"set: cloud_file_name: .*{message}"):
        load(make_entry(cloud_file_name=location), Access(Path()))
