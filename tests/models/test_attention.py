"""`flash_attn` values, missing packages, family overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.models import examples, padded, tiny_model
from transformers import Gemma2Config, LlamaConfig

from llamafactory.errors import ConfigError
from llamafactory.models.attention import Device, choose_attention, find_device

DEFAULT = "the model's default attention is used"


@pytest.mark.parametrize(("value", "name"), [("auto", None), ("disabled", "eager"), ("sdpa", "sdpa")])
def test_names(load, model_dir: Path, value: str, name: str | None) -> None:
    assert choose_attention(value, LlamaConfig()) == (name, None)
    loaded, _, _ = load(model_name_or_path=str(model_dir), flash_attn=value, finetuning_type="full")
    assert loaded.model.config._attn_implementation == (name or "sdpa")


@pytest.mark.parametrize(("value", "package"), [("fa2", "flash_attn"), ("fa3", "flash_attn_interface")])
def test_missing_package_is_told(
    load, model_dir: Path, monkeypatch: pytest.MonkeyPatch, value: str, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    name, notice = choose_attention(value, LlamaConfig())
    assert name is None
    assert notice is not None
    assert f"flash_attn: {value} has no effect because the package '{package}' is not installed" in notice


def test_installed_package_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    assert choose_attention("fa2", LlamaConfig()) == ("flash_attention_2", None)
    assert choose_attention("fa3", LlamaConfig()) == ("flash_attention_3", None)


@pytest.mark.parametrize("value", ["fa2", "fa3"])
def test_flash_attention_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    name, notice = choose_attention(value, LlamaConfig(), Device(capability=None))
    assert name is None
    assert notice is not None and f"flash_attn: {value} has no effect because this run uses the CPU" in notice


@pytest.mark.parametrize(
    ("value", "device", "why"),
    [
        ("fa2", Device(capability=(7, 5)), "it needs a GPU of compute capability 8.0, and this one has 7.5"),
        ("fa3", Device(capability=(8, 9)), "it needs a GPU of compute capability 9.0, and this one has 8.9"),
        ("fa2", Device(half=False), "it computes in 16 bits alone, and this run is in float32 (set bf16: true)"),
    ],
)
def test_a_gpu_that_cannot_is_told(monkeypatch: pytest.MonkeyPatch, value: str, device: Device, why: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    name, notice = choose_attention(value, LlamaConfig(), device)
    assert name is None and notice == f"flash_attn: {value} has no effect because {why}; {DEFAULT}"


def test_the_device_of_a_run(make_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 6))
    assert find_device(make_config(), torch.float32) == Device((8, 6), half=False)
    assert find_device(make_config(), torch.bfloat16) == Device((8, 6), half=True)
    assert find_device(make_config(bf16=True), torch.float32) == Device((8, 6), half=True)
    assert find_device(make_config(use_cpu=True), torch.bfloat16).capability is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("value", "package"), [("fa2", "flash_attn"), ("fa3", "flash_attn_interface")])
def test_flash_attention_on_a_gpu(value: str, package: str) -> None:
    """The same logits as sdpa, with padding and end to end."""
    pytest.importorskip(package)
    name, notice = choose_attention(value, LlamaConfig(), Device(torch.cuda.get_device_capability()))
    if name is None:
        pytest.skip(str(notice))
    options = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    batch = {key: part.to("cuda") for key, part in padded(examples([25, 17])).items()}
    found = []
    for attention in ("sdpa", name):
        model = tiny_model(attn_implementation=attention, **options).to("cuda", torch.bfloat16)
        with torch.no_grad():
            found.append(model(**batch, use_cache=False).logits[batch["attention_mask"].bool()])
    assert torch.allclose(*found, rtol=5e-2, atol=5e-2)


def test_family_override() -> None:
    assert choose_attention("auto", Gemma2Config()) == ("eager", None)


def test_unknown_value() -> None:
    with pytest.raises(ConfigError, match="flash_attn: 'flash' is not one of auto, disabled, sdpa, fa2, fa3"):
        choose_attention("flash", LlamaConfig())
