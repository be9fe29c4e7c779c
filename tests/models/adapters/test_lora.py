"""LoRA: targets, variants, several adapters, and that only adapters move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamafactory.errors import CheckpointError, ConfigError, ModelError
from llamafactory.models.save import save_model

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(model: torch.nn.Module) -> set[str]:
    return {
        name.split(".lora_A")[0].split("model.model.")[-1] for name, _ in model.named_parameters() if "lora_A" in name
    }


def trained_adapter(load, sgd_step, folder: Path, **options: object) -> torch.Tensor:
    """Train one step, save into `folder`, return the logits of a fixed prompt."""
    loaded, bundle, _ = load(**options)
    sgd_step(loaded.model)
    sgd_step(loaded.model)
    save_model(loaded.model, bundle.tokenizer, folder, record=loaded.record)
    return logits(loaded.model)


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_target": "q_proj,v_proj"}, {"lora_target": "embed_tokens"}],
)
def test_only_the_adapter_moves(load, sgd_step, untied_dir: Path, options: dict) -> None:
    loaded, _, _ = load(model_name_or_path=str(untied_dir), **options)
    before = sgd_step(loaded.model)
    moved = {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_all_means_every_linear_but_the_head(load, untied_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(untied_dir))
    assert {name.rsplit(".", 1)[-1] for name in adapted(loaded.model)} == LINEAR
    assert len(adapted(loaded.model)) == 14


def test_llama_pro_restricts_the_layers(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), use_llama_pro=True, freeze_trainable_layers=1)
    assert {name.split(".")[2] for name in adapted(loaded.model)} == {"1"}
    assert len(adapted(loaded.model)) == 7


def test_alpha_defaults_to_twice_the_rank(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), lora_rank=4)
    assert loaded.model.peft_config["default"].lora_alpha == 8
    layer = loaded.model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2.0
    rs = load(model_name_or_path=str(model_dir), lora_rank=4, use_rslora=True)[0].model
    assert rs.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == 4.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lora_target": "q_prj"},
            r"lora_target: the model has no module 'q_prj' \(linear modules: .*did you mean 'q_proj'",
        ),
        ({"lora_target": "mlp"}, r"lora_target: 'mlp' is a LlamaMLP, .*\(down_proj, gate_proj, up_proj\)"),
        (
            {"additional_target": "embd_tokens"},
            r"additional_target: the model has no module.*did you mean 'embed_tokens'",
        ),
        (
            {"lora_target": "lm_head"},
            r"lora_target: 'lm_head' is the input embedding and the output head in one weight",
        ),
        ({"lora_target": "embed_tokens"}, r"lora_target: 'embed_tokens' is .* use additional_target: embed_tokens"),
    ],
)
def test_bad_targets(load, model_dir: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(model_name_or_path=str(model_dir), **options)


def test_head_of_an_untied_model_may_be_adapted(load, untied_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(untied_dir), lora_target="q_proj,lm_head")
    assert any(name.endswith("lm_head") for name in adapted(loaded.model))


def test_additional_target_keeps_tied_weights_tied(load, sgd_step, model_dir: Path) -> None:
    for targets in ("embed_tokens", "embed_tokens,lm_head", "lm_head"):
        loaded, _, _ = load(model_name_or_path=str(model_dir), additional_target=targets)
        sgd_step(loaded.model)
        base = loaded.model.get_base_model()
        assert torch.equal(base.get_input_embeddings().weight, base.get_output_embeddings().weight)
        merged = loaded.model.merge_and_unload()
        assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight


def test_resume_goes_on_with_the_last_adapter(load, sgd_step, model_dir: Path, tmp_path: Path, capsys, caplog) -> None:
    after = trained_adapter(load, sgd_step, tmp_path, model_name_or_path=str(model_dir), lora_rank=4)
    options = {"model_name_or_path": str(model_dir), "adapter_name_or_path": str(tmp_path)}
    loaded, _, _ = load(**options)
    assert loaded.model.peft_config["default"].r == 4
    assert torch.allclose(logits(loaded.model), after, atol=1e-6)
    loaded.model.train()
    before = sgd_step(loaded.model)
    assert any(not torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    assert loaded.record.merged_adapters == ()
    assert "goes on learning with its own rank, alpha and targets" in capsys.readouterr().err + caplog.text


def test_inference_merges_everything(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    first = {"model_name_or_path": str(model_dir)}
    trained_adapter(load, sgd_step, tmp_path / "a", **first)
    second = {**first, "adapter_name_or_path": str(tmp_path / "a"), "create_new_adapter": True, "lora_target": "q_proj"}
    after = trained_adapter(load, sgd_step, tmp_path / "b", **second)
    both = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    loaded, _, _ = load(trainable=False, model_name_or_path=str(model_dir), adapter_name_or_path=both)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert torch.allclose(logits(loaded.model), after, atol=1e-5)
    record = json.loads((tmp_path / "b" / "base_record.json").read_text())
    assert record["merged_adapters"] == [str(tmp_path / "a")]
    resumed, _, _ = load(model_name_or_path=str(model_dir), adapter_name_or_path=both)
    assert {name.rsplit(".", 1)[-1] for name in adapted(resumed.model)} == {"q_proj"}
    assert torch.allclose(logits(resumed.model), after, atol=1e-5)


def test_adapter_folder(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    after = trained_adapter(load, sgd_step, tmp_path / "repo" / "inner", model_name_or_path=str(model_dir))
    options = {"model_name_or_path": str(model_dir), "adapter_name_or_path": str(tmp_path / "repo")}
    loaded, _, _ = load(trainable=False, adapter_folder="inner", **options)
    assert torch.allclose(logits(loaded.model), after, atol=1e-5)
    with pytest.raises(ModelError, match="has no sub-folder 'outer'"):
        load(trainable=False, adapter_folder="outer", **options)


def test_a_model_is_not_an_adapter(load, model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no adapter_config.json, so it is not an adapter"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(model_dir))


def test_an_adapter_is_not_a_model(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    trained_adapter(load, sgd_step, tmp_path, model_name_or_path=str(model_dir))
    with pytest.raises(ModelError, match=r"is an adapter .*give it as adapter_name_or_path"):
        load(model_name_or_path=str(tmp_path))


def test_adapter_of_another_model(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    trained_adapter(load, sgd_step, tmp_path, model_name_or_path=str(model_dir))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.zeros(tensor.shape[0], tensor.shape[1] + 1) for name, tensor in tensors.items()}, file)
    with pytest.raises(ModelError, match=r"does not fit this llama model.*size mismatch.*base model it was trained on"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))


def test_adapter_tensor_without_a_place(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    trained_adapter(load, sgd_step, tmp_path, model_name_or_path=str(model_dir))
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.layers.9.q_proj.lora_A.weight": torch.zeros(8, 32)}, file)
    with pytest.raises(ModelError, match=r"holds 1 tensors this model has no place for"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))


def test_other_base_weights_are_told(
    load, sgd_step, model_dir: Path, untied_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_adapter(load, sgd_step, tmp_path / "a", model_name_or_path=str(untied_dir))
    file = untied_dir / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    load(model_name_or_path=str(untied_dir), adapter_name_or_path=str(tmp_path / "a"))
    assert any("not the weights the adapter was trained on" in message for message in caplog.messages)


def test_stretched_positions_are_remembered(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    options = {"model_name_or_path": str(model_dir), "rope_scaling": "linear", "cutoff_len": 2000}
    after = trained_adapter(load, sgd_step, tmp_path, **options)
    loaded, _, _ = load(trainable=False, model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))
    assert loaded.model.config.rope_parameters["factor"] == 4.0
    assert torch.allclose(logits(loaded.model), after, atol=1e-5)


def test_foreign_adapter_with_a_grown_embedding(load, model_dir: Path, untied_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(untied_dir)
    model.resize_token_embeddings(704, mean_resizing=False)
    options = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    wrapped = get_peft_model(model, options)
    wrapped.save_pretrained(tmp_path)
    loaded, _, _ = load(trainable=False, model_name_or_path=str(untied_dir), adapter_name_or_path=str(tmp_path))
    assert loaded.model.get_input_embeddings().weight.shape[0] == 704
    assert torch.allclose(logits(loaded.model), logits(wrapped), atol=1e-6)


@pytest.mark.parametrize("kept", [0, 3000])
def test_a_damaged_adapter_file_is_told_by_name(load, sgd_step, model_dir: Path, tmp_path: Path, kept: int) -> None:
    trained_adapter(load, sgd_step, tmp_path, model_name_or_path=str(model_dir))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: expected a safetensors file, found a dam"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))
