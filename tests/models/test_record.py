"""What an adapter remembers of its base."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamafactory.errors import CheckpointError
from llamafactory.models.record import BaseRecord, fingerprint, read_record, write_record


def test_round_trip(tmp_path: Path) -> None:
    record = BaseRecord("org/name", 640, "abc", ("a", "b"), (("<x>", "special"),), {"rope_type": "linear"}, 1024)
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["[]", "{broken", '{"unknown": 1}', '{"base_model": "x"}'])
def test_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "base_record.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected the record of an adapter's base"):
        read_record(tmp_path)


def test_fingerprint_follows_the_values_not_the_files(untied_dir: Path, tmp_path: Path) -> None:
    first = fingerprint(untied_dir)
    AutoModelForCausalLM.from_pretrained(untied_dir).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path) == first
    file = untied_dir / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint(untied_dir) != first
    assert fingerprint(tmp_path / "none") == ""
