"""Digests that decide whether prepared data may be used again: data, renderer, options, code."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import llamafactory.data
import llamafactory.rendering


def digest_of(value: object) -> str:
    """Digest of a JSON value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def code_digest() -> str:
    """Digest of the code that makes tokens: the rendering and data rooms and the libraries under them."""
    import datasets
    import pyarrow
    import tokenizers

    digest = hashlib.sha256(f"{tokenizers.__version__} {pyarrow.__version__} {datasets.__version__}".encode())
    for package in (llamafactory.rendering, llamafactory.data):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            if path.suffix in {".py", ".json", ".yaml", ".jinja"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(parts: Mapping[str, object]) -> str:
    """The name of a cache entry: 32 hexadecimal digits."""
    return digest_of({**parts, "code": code_digest()})[:32]
