"""What an adapter must remember about its base: written beside the adapter, read by every later load and merge.

An adapter trained on a grown vocabulary or a stretched context only fits the same change of the base, and a base that
was merged with earlier adapters must be merged with them again. Knows files, no model class.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llamafactory.errors import CheckpointError
from llamafactory.models.safetensors_file import read_entries
from llamafactory.models.value_head import VALUE_HEAD_FILE

RECORD_FILE = "base_record.json"
_SAMPLE_BYTES = 256


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The base as an adapter saw it.

    base_model: name or absolute folder. base_fingerprint: of its weights, empty when unknown. merged_adapters: merged
    into the base before this adapter was made, in order. vocab_size: rows of the input embedding. added_tokens: token
    text to kind ("special" or "normal"). rope_parameters, max_position_embeddings: of the stretched base, or None.
    quantization: of the base in training, in words; empty for plain weights.
    """

    base_model: str
    vocab_size: int
    base_fingerprint: str = ""
    merged_adapters: tuple[str, ...] = ()
    added_tokens: tuple[tuple[str, str], ...] = ()
    rope_parameters: dict[str, object] | None = None
    quantization: str = ""
    max_position_embeddings: int | None = None


def write_record(record: BaseRecord, folder: Path) -> None:
    """Write `base_record.json` into `folder`."""
    text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> BaseRecord | None:
    """Read the record beside an adapter; None when the adapter came from elsewhere. Raises CheckpointError."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["merged_adapters"] = tuple(content.get("merged_adapters", ()))
        content["added_tokens"] = tuple((text, kind) for text, kind in content.get("added_tokens", ()))
        return BaseRecord(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: expected the record of an adapter's base, found {error}; save it again"
        ) from error


def fingerprint(folder: Path) -> str:
    """Digest of the names, types, shapes and first bytes of all tensors; the same for every way to shard the weights.

    A value head beside them does not count. Reads a few hundred bytes per tensor. Empty when the folder holds no
    safetensors.
    """
    entries: list[tuple[str, str]] = []
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != VALUE_HEAD_FILE:
            entries.extend(_tensor_entries(file))
    if not entries:
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(entries):
        digest.update(f"{name}={value}\n".encode())
    return digest.hexdigest()


def _tensor_entries(file: Path) -> list[tuple[str, str]]:
    entries = []
    with file.open("rb") as stream:
        for name, entry in read_entries(file).items():
            stream.seek(entry.start)
            sample = hashlib.sha256(stream.read(min(_SAMPLE_BYTES, entry.end - entry.start))).hexdigest()
            entries.append((name, f"{entry.dtype}{list(entry.shape)}{sample}"))
    return entries
