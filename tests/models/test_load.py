"""Loading: formats, attention, checkpointing, refusals, and that decisions are told."""

from __future__ import annotations

import json
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.conftest import write_gemma3
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from llamafactory.errors import CheckpointError, ConfigError, MissingPackageError, ModelError
from llamafactory.models.build import _inference_devices
from llamafactory.models.checkpointing import enable_checkpointing
from llamafactory.models.save import save_model


def test_full_training_reads_bf16_weights_as_fp32(load, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(model_dir, folder)
    AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).save_pretrained(folder)
    loaded, _, _ = load(model_name_or_path=str(folder), finetuning_type="full", bf16=True)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.dtype == torch.bfloat16
    assert any("trained weights float32" in note and "bf16: true" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("options", "frozen", "trained"),
    [
        ({"bf16": True}, torch.bfloat16, torch.float32),
        ({"fp16": True}, torch.float16, torch.float32),
        ({"pure_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({}, torch.float32, torch.float32),
    ],
)
def test_lora_formats(load, model_dir: Path, options: dict, frozen: torch.dtype, trained: torch.dtype) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), **options)
    groups = {True: set(), False: set()}
    for parameter in loaded.model.parameters():
        groups[parameter.requires_grad].add(parameter.dtype)
    assert groups == {True: {trained}, False: {frozen}}


def test_freeze_keeps_precision_of_trained_layers(load, model_dir: Path) -> None:
    loaded, _, _ = load(
        model_name_or_path=str(model_dir), finetuning_type="freeze", freeze_trainable_layers=1, bf16=True
    )
    stored = load_file(model_dir / "model.safetensors")
    live = dict(loaded.model.named_parameters())
    assert torch.equal(live["model.layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"])
    assert live["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_bf16_and_fp16_together_are_refused(load, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"bf16 and fp16 are both true.*keep one"):
        load(model_name_or_path=str(model_dir), bf16=True, fp16=True)


def test_infer_dtype(load, model_dir: Path) -> None:
    loaded, _, _ = load(trainable=False, model_name_or_path=str(model_dir), infer_dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert load(trainable=False, model_name_or_path=str(model_dir))[0].model.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"fp8_backend": "te"}, "fp8_backend"),
    ],
)
def test_parts_that_do_not_exist_are_refused(load, model_dir: Path, options: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .* this version cannot run .* yet; (remove {key}|available)"):
        load(model_name_or_path=str(model_dir), **options)


def test_adapters_need_an_adapter_method(load, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapters need finetuning_type: lora, oft, .*, got full"):
        load(model_name_or_path=str(model_dir), finetuning_type="full", adapter_name_or_path=str(model_dir))


def test_missing_model_name(load) -> None:
    with pytest.raises(ConfigError, match="model_name_or_path: a model is needed"):
        load()


def test_missing_tensor_is_an_error(load, untied_dir: Path) -> None:
    weights = load_file(untied_dir / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, untied_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's tensors, such as lm_head.weight"):
        load(model_name_or_path=str(untied_dir))


@pytest.mark.parametrize("kept", [0, 5, 100, 4000])
def test_a_damaged_weight_file_is_told_by_name(load, untied_dir: Path, kept: int) -> None:
    file = untied_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a safetensors file, found a damaged one"):
        load(model_name_or_path=str(untied_dir))


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed")
def test_stored_quantization_without_its_package_is_one_sentence(load, untied_dir: Path) -> None:
    config = json.loads((untied_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (untied_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingPackageError, match=r"quantized with gptq.*pip install 'llamafactory\[gptq\]'"):
        load(model_name_or_path=str(untied_dir))


def test_train_from_scratch_is_random_and_repeatable(load, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no_weights"
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    options = {"model_name_or_path": str(folder), "train_from_scratch": True, "finetuning_type": "full", "seed": 1}
    first = load(**options)[0].model.state_dict()
    second = load(**options)[0].model.state_dict()
    stored = load_file(model_dir / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], stored[name])


def test_generation_config_is_repaired(load, untied_dir: Path, tmp_path: Path) -> None:
    (untied_dir / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    loaded, _, _ = load(model_name_or_path=str(untied_dir), finetuning_type="full")
    assert loaded.model.generation_config.do_sample is True
    loaded.model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "method", [{"finetuning_type": "lora"}, {"finetuning_type": "freeze", "freeze_trainable_layers": 1}]
)
def test_checkpointing_gives_the_same_gradients(load, model_dir: Path, reentrant: bool, method: dict) -> None:
    ids = torch.arange(40, 72).reshape(2, 16)
    gradients = []
    for disabled in (True, False):
        loaded, _, _ = load(
            model_name_or_path=str(model_dir),
            disable_gradient_checkpointing=disabled,
            use_reentrant_gc=reentrant,
            **method,
        )
        loaded.model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in loaded.model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7)


def test_only_learning_layers_are_recomputed(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), finetuning_type="freeze", freeze_trainable_layers=1)
    assert [layer.gradient_checkpointing for layer in loaded.model.model.layers] == [False, True]
    assert "gradient checkpointing: 1 layers" in loaded.notes


def test_upcasts(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), bf16=True, upcast_layernorm=True, upcast_lmhead_output=True)
    dtypes = {name: p.dtype for name, p in loaded.model.named_parameters() if not p.requires_grad}
    assert all((dtype == torch.float32) == ("norm" in name) for name, dtype in dtypes.items())
    with torch.autocast("cpu", torch.bfloat16):
        assert loaded.model(input_ids=torch.arange(40, 48)[None]).logits.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"upcast_lmhead_output": True}])
def test_upcast_norms_stand_before_narrow_weights(load, model_dir: Path, options: dict) -> None:
    """Without autocast, which would hide it."""
    loaded, _, _ = load(model_name_or_path=str(model_dir), pure_bf16=True, upcast_layernorm=True, **options)
    ids = torch.arange(40, 48)[None]
    loss = loaded.model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()


def test_use_cache_off_while_training_on_at_inference(load, model_dir: Path) -> None:
    assert load(model_name_or_path=str(model_dir))[0].model.config.use_cache is False
    assert load(trainable=False, model_name_or_path=str(model_dir))[0].model.config.use_cache is True
    loaded, _, _ = load(trainable=False, model_name_or_path=str(model_dir), use_kv_cache=False)
    assert loaded.model.config.use_cache is False


def test_print_param_status(load, model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(model_name_or_path=str(model_dir), finetuning_type="full", print_param_status=True)
    assert "name: model.norm.weight, dtype: torch.float32, device: cpu, trainable: True" in caplog.messages


def test_local_files_need_no_network(load, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), add_tokens="<new>")
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    load(trainable=False, model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))


def test_unreadable_configuration(load, untied_dir: Path) -> None:
    (untied_dir / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ModelError, match=r"has no configuration this release can read .*update transformers"):
        load(model_name_or_path=str(untied_dir))


def test_weights_of_another_shape(load, untied_dir: Path) -> None:
    weights = load_file(untied_dir / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(7)
    save_file(weights, untied_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"could not be loaded"):
        load(model_name_or_path=str(untied_dir))


def test_family_without_checkpointing() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="gpt2 does not support gradient checkpointing; set disable_gradient"):
        enable_checkpointing(model, reentrant=True)


def test_nothing_to_train(load, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder_only"
    write_gemma3(folder, model_dir)
    with pytest.raises(ModelError, match="finetuning_type: full leaves no parameter to train"):
        load(model_name_or_path=str(folder), finetuning_type="full", freeze_language_model=True)
    with pytest.raises(ConfigError, match="lora_target: no module is left that may learn"):
        load(model_name_or_path=str(folder), freeze_language_model=True)


def test_an_adapter_needs_a_base_that_is_kept(load, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="train_from_scratch: the random base of an adapter is not saved"):
        load(model_name_or_path=str(model_dir), train_from_scratch=True)


def test_a_model_that_scores_beside_a_trained_one_stays_on_the_device_of_its_process(
    make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _inference_devices(make_config(do_train=True)) == {"": torch.device("cuda", 1)}
    assert _inference_devices(make_config("chat")) == "auto"
    assert _inference_devices(make_config(do_train=True, use_cpu=True)) is None
