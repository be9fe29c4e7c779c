"""Saving: what lies in the folder, and that an incomplete save is an error at once."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llamafactory.errors import CheckpointError
from llamafactory.models.save import SaveOptions, check_saved, save_model, save_weights


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_adapter_folder(load, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir))
    monkeypatch.setattr(socket, "socket", None)  # saving asks no hub
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    assert files(tmp_path) == {
        "adapter_model.safetensors", "adapter_config.json", "base_record.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == str(model_dir)
    assert content["inference_mode"] is True
    assert loaded.model.peft_config["default"].inference_mode is False


def test_full_folder(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), finetuning_type="full")
    template = bundle.tokenizer.chat_template
    options = SaveOptions(stop_ids=(2, 5, 2), chat_template="{{ 'hello' }}", padding_side="left")
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record, options=options)
    assert {"model.safetensors", "config.json", "generation_config.json", "chat_template.jinja"} <= files(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2, 5]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == "{{ 'hello' }}"
    assert tokenizer.padding_side == "left"
    assert (bundle.tokenizer.chat_template, bundle.tokenizer.padding_side) == (template, "right")
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True
    assert loaded.model.config.use_cache is False


@pytest.mark.parametrize("tied", [True, False])
def test_dtype_and_shards(load, model_dir: Path, untied_dir: Path, tmp_path: Path, tied: bool) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir if tied else untied_dir), finetuning_type="full")
    options = SaveOptions(max_shard_gb=40e3 / 1e9, dtype=torch.bfloat16)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record, options=options)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) is tied
    live = loaded.model.state_dict()
    assert all(torch.equal(tensor, live[name].bfloat16()) for name, tensor in again.state_dict().items())
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_tensor_lost_on_the_way_is_an_error(load, untied_dir: Path, tmp_path: Path, method: str) -> None:
    options = {"finetuning_type": "full"} if method == "full" else {"use_dora": method == "dora"}
    loaded, _, _ = load(model_name_or_path=str(untied_dir), **options)
    save_weights(loaded.model, tmp_path, record=loaded.record)
    file = tmp_path / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    tensors = load_file(file)
    name, tensor = sorted(tensors.items())[-1]
    save_file({**tensors, name: tensor[:0].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"should be saved with shape .* found \[0"):
        check_saved(loaded.model, tmp_path)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the save is incomplete"):
        check_saved(loaded.model, tmp_path)


def test_damaged_file(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir))
    save_weights(loaded.model, tmp_path, record=loaded.record)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="found a damaged one"):
        check_saved(loaded.model, tmp_path)


def test_gathered_weights_are_written(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir))
    gathered = {name: torch.full_like(tensor, 3.0) for name, tensor in loaded.model.state_dict().items()}
    save_weights(loaded.model, tmp_path, record=loaded.record, state_dict=gathered)
    assert all(bool((tensor == 3.0).all()) for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


def test_weights_under_other_names_are_counted(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), finetuning_type="full")
    save_weights(loaded.model, tmp_path, record=loaded.record)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    check_saved(loaded.model, tmp_path)
    save_file({"other.model.norm.weight": tensors["model.norm.weight"]}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"parameters live in the model, but only 32 were saved"):
        check_saved(loaded.model, tmp_path)
