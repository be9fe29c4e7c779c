"""Finding layers and parts, on a text model, a multimodal one and one with fused experts."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from llamafactory.errors import ModelError
from llamafactory.models.adapters import freeze, full, lora
from llamafactory.models.modules import find_layers, has_fused_experts, has_part


@pytest.fixture
def multimodal() -> Gemma3ForConditionalGeneration:
    text = {
        "vocab_size": 128, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1))


def learning(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_names_match_at_component_borders() -> None:
    assert has_part("model.norm.weight", ("norm",))
    assert not has_part("model.layernorm.weight", ("norm",))
    assert has_part("model.visual.merger.mlp", ("visual.merger",))


def test_layers_of_other_families() -> None:
    layers = find_layers(GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=3, n_head=2)))
    assert (layers.prefix, layers.count) == ("transformer.h", 3)
    assert layers.index_of("transformer.h.2.mlp.c_fc.weight") == 2
    assert layers.index_of("transformer.ln_f.weight") is None
    assert layers.inner("transformer.h.2.mlp.c_fc.weight") == "mlp.c_fc.weight"


def test_no_layers() -> None:
    model = LlamaModel(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="llama: no list of 1 layers was found"):
        find_layers(model)


def test_full_leaves_the_encoder_alone(make_config, multimodal: Gemma3ForConditionalGeneration) -> None:
    full.apply(multimodal, make_config(finetuning_type="full"), trainable=True, vocab_grown=False)
    names = learning(multimodal)
    assert names
    assert not any("vision_tower" in name or "multi_modal_projector" in name for name in names)
    config = make_config(finetuning_type="full", freeze_multi_modal_projector=False, freeze_language_model=True)
    full.apply(multimodal, config, trainable=True, vocab_grown=False)
    assert all("multi_modal_projector" in name for name in learning(multimodal))


def test_freeze_counts_language_layers(make_config, multimodal: Gemma3ForConditionalGeneration) -> None:
    config = make_config(finetuning_type="freeze", freeze_trainable_layers=1, freeze_multi_modal_projector=False)
    freeze.apply(multimodal, config, trainable=True, vocab_grown=False)
    names = learning(multimodal)
    assert any("multi_modal_projector" in name for name in names)
    assert all("language_model.layers.1." in name or "multi_modal_projector" in name for name in names)


def test_lora_adapts_the_language_model_alone(make_config, multimodal: Gemma3ForConditionalGeneration) -> None:
    model = lora.apply(multimodal, make_config(), trainable=True, vocab_grown=False)
    assert learning(model)
    assert all("language_model" in name and "lora_" in name for name in learning(model))


def test_lora_on_the_encoder_when_it_is_not_frozen(make_config, multimodal: Gemma3ForConditionalGeneration) -> None:
    model = lora.apply(multimodal, make_config(freeze_vision_tower=False), trainable=True, vocab_grown=False)
    assert any("vision_tower" in name for name in learning(model))


def test_fused_experts_are_told(make_config, caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    assert has_fused_experts(model)
    lora.apply(model, make_config(), trainable=True, vocab_grown=False)
    assert any("does not reach the fused expert weights" in message for message in caplog.messages)
