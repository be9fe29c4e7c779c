"""`flash_attn` values, missing packages, family overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Gemma2Config, LlamaConfig

from llamafactory.errors import ConfigError
from llamafactory.models.attention import choose_attention


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
    name, notice = choose_attention(value, LlamaConfig(), on_gpu=False)
    assert name is None
    assert notice is not None and f"flash_attn: {value} has no effect because this run uses the CPU" in notice


def test_family_override() -> None:
    assert choose_attention("auto", Gemma2Config()) == ("eager", None)


def test_unknown_value() -> None:
    with pytest.raises(ConfigError, match="flash_attn: 'flash' is not one of auto, disabled, sdpa, fa2, fa3"):
        choose_attention("flash", LlamaConfig())
