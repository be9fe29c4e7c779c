"""Names, shapes and places of tensors in safetensors files, read from the headers alone."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from llamafactory.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in a file. start, end: byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(file: Path) -> dict[str, TensorEntry]:
    """Name and place of every tensor. Raises CheckpointError when the file is damaged."""
    try:
        with file.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise ValueError(f"it has {len(prefix)} bytes")
            (size,) = struct.unpack("<Q", prefix)
            if size > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        if 8 + size + max((facts["data_offsets"][1] for facts in header.values()), default=0) > file.stat().st_size:
            raise ValueError("it ends before its last tensor does")
    except ValueError as error:
        raise CheckpointError(
            f"{file}: expected a safetensors file, found a damaged one ({error}); restore it"
        ) from error
    return {
        name: TensorEntry(facts["dtype"], tuple(facts["shape"]), *(8 + size + at for at in facts["data_offsets"]))
        for name, facts in header.items()
    }


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in one file."""
    return {name: entry.shape for name, entry in read_entries(file).items()}


def folder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in all safetensors files of a folder."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes.update(tensor_shapes(file))
    return shapes


def read_tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a folder, by its name in the files. Raises CheckpointError when no file holds it."""
    for file in sorted(folder.glob("*.safetensors")):
        if name in read_entries(file):
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
    raise CheckpointError(
        f"{folder}: no .safetensors file in it holds the tensor {name}; give a folder with plain weights under the "
        "model's own names"
    )
