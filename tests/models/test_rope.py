"""Scaled positions: the configuration, the angles against the published formulas, and a running model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from llamafactory.errors import ModelError
from llamafactory.models.rope import scale_rope, set_rope

LENGTH, THETA, DIM = 64, 50000.0, 16


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip


def plain_frequencies(base: float = THETA) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(0, DIM, 2).float() / DIM)


def expected(method: str, factor: float, tokens: int) -> torch.Tensor:
    """Inverse frequencies written out from the papers."""
    plain = plain_frequencies()
    if method == "linear":
        return plain / factor
    if method == "dynamic":
        return plain_frequencies(THETA * (factor * tokens / LENGTH - (factor - 1)) ** (DIM / (DIM - 2)))
    if method == "llama3":
        wavelength = 2 * math.pi / plain
        smooth = (LENGTH / wavelength - 1.0) / (4.0 - 1.0)
        middle = (1 - smooth) * plain / factor + smooth * plain
        return torch.where(wavelength < LENGTH / 4.0, plain, torch.where(wavelength > LENGTH, plain / factor, middle))

    def dimension(rotations: float) -> float:
        return DIM * math.log(LENGTH / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), DIM - 1)
    ramp = ((torch.arange(DIM // 2).float() - low) / (high - low)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp)


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn", "llama3"])
def test_angles_follow_the_formula(method: str) -> None:
    hf_config = config()
    change = scale_rope(method, hf_config, cutoff_len=200, trainable=True)
    assert change is not None
    set_rope(hf_config, change.rope_parameters, change.max_position_embeddings)
    hf_config.validate_rope()
    assert hf_config.rope_parameters["factor"] == 4.0
    assert hf_config.rope_parameters["rope_theta"] == THETA
    assert type(hf_config.max_position_embeddings) is int
    rotary = LlamaRotaryEmbedding(hf_config)
    positions = torch.arange(200)[None]
    cos, sin = rotary(torch.zeros(1, 200, 32), positions)
    angles = positions[0, :, None].float() * expected(method, 4.0, 200)
    scale = 0.1 * math.log(4.0) + 1.0 if method == "yarn" else 1.0
    assert torch.allclose(cos[0, :, : DIM // 2], angles.cos() * scale, atol=1e-4)
    assert torch.allclose(sin[0, :, : DIM // 2], angles.sin() * scale, atol=1e-4)


def test_short_data_leaves_the_model_alone() -> None:
    assert scale_rope("linear", config(), cutoff_len=LENGTH, trainable=True) is None


def test_inference_doubles_once() -> None:
    hf_config = config()
    change = scale_rope("yarn", hf_config, cutoff_len=16, trainable=False)
    assert change is not None
    assert change.rope_parameters["factor"] == 2.0
    set_rope(hf_config, change.rope_parameters, change.max_position_embeddings)
    assert hf_config.max_position_embeddings == 2 * LENGTH
    assert scale_rope("yarn", hf_config, cutoff_len=16, trainable=False) is None


def test_only_global_layers_are_stretched() -> None:
    hf_config = Gemma3TextConfig(num_hidden_layers=2, max_position_embeddings=LENGTH)
    change = scale_rope("linear", hf_config, cutoff_len=128, trainable=True)
    assert change is not None
    local = hf_config.rope_parameters["sliding_attention"]
    assert change.rope_parameters["sliding_attention"] == local
    assert change.rope_parameters["full_attention"]["factor"] == 2.0
    assert change.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0


def test_model_without_rotary_positions() -> None:
    with pytest.raises(ModelError, match="gpt2 has no rotary positions to scale; remove rope_scaling"):
        scale_rope("linear", GPT2Config(), cutoff_len=4096, trainable=True)


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn", "llama3"])
def test_stretched_model_trains_saves_and_loads(load, model_dir: Path, tmp_path: Path, method: str) -> None:
    options = {"model_name_or_path": str(model_dir), "finetuning_type": "full", "rope_scaling": method}
    loaded, _, _ = load(**options, cutoff_len=1500)
    assert any(note.startswith(f"rope_scaling: {method}, factor 3, positions 512 -> 1536") for note in loaded.notes)
    ids = torch.randint(40, 300, (1, 700))
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    loaded.model.eval()
    before = loaded.model(input_ids=ids).logits
    loaded.model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(before, again(input_ids=ids).logits, atol=1e-6)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == method
