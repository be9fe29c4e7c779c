"""The router loss of mixture-of-experts models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.models import COMMON, examples, padded
from tests.training.runs import run_config
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts, router_families
from llamafactory.models.router import report_router_loss, set_router_loss
from llamafactory.objectives.sft import build
from llamafactory.training.scoring import TokenScorer


def test_the_loss_is_returned_and_weighted() -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    set_router_loss(config, 0.25)
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    ids = torch.arange(8)[None]
    output = model(input_ids=ids, labels=ids)
    logits = output.logits[0, :-1]
    plain = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    assert output.aux_loss > 0
    assert torch.allclose(output.loss, plain + 0.25 * output.aux_loss, atol=1e-5)


FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {**FOUR, "moe_intermediate_size": 16, "head_dim": 8}
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
# Options of a tiny model, and part of the name of its routers' weights.
TINY: dict[str, tuple[dict[str, object], str]] = {
    "dbrx": ({
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 128,
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    }, "router"),
    "ernie4_5_moe": (COMMON | {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0,
        "moe_num_shared_experts": 1,
    }, "mlp.gate.weight"),
    "glm4v_moe": ({"text_config": COMMON | {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 0,
        "n_group": 1, "topk_group": 1,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1],
        },
    }, "vision_config": VISION}, "mlp.gate.weight"),
    "gpt_oss": (COMMON | LOCAL | {"head_dim": 8}, "router"),
    "granitemoe": (COMMON | LOCAL, "router"),
    "jamba": (COMMON | FOUR | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0,
        "mamba_d_state": 4, "mamba_dt_rank": 4, "mamba_expand": 1,
    }, "router"),
    "jetmoe": (COMMON | LOCAL | {"kv_channels": 8}, "router"),
    "llama4_text": (COMMON | LOCAL | {
        "num_experts_per_tok": 1, "head_dim": 8, "intermediate_size_mlp": 32, "attention_chunk_size": 64,
    }, "router"),
    "minimax": (COMMON | LOCAL | {"head_dim": 8}, "gate.weight"),
    "mixtral": (COMMON | LOCAL, "gate.weight"),
    "olmoe": (COMMON | FOUR, "gate.weight"),
    "phimoe": (COMMON | LOCAL, "router"),
    "qwen2_moe": (COMMON | FOUR | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}, "mlp.gate"),
    "qwen3_moe": (COMMON | QWEN, "gate.weight"),
    "qwen3_next": (COMMON | QWEN | {
        "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }, "mlp.gate.weight"),
    "qwen3_vl_moe": ({"text_config": COMMON | QWEN | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }, "vision_config": VISION | {"deepstack_visual_indexes": [0]}}, "mlp.gate.weight"),
}  # fmt: skip
NOT_BUILT = {
    "deepseek": "its code is remote: the loss is added inside its layers",
    "qwen3_omni_moe_text": "the thinker is no causal language model of its own",
}


def tiny_experts(name: str, coefficient: float = 0.25) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**TINY[name][0])
    set_router_loss(config, coefficient)
    auto = AutoModelForImageTextToText if "vision_config" in TINY[name][0] else AutoModelForCausalLM
    model = auto.from_config(config)
    report_router_loss(model, coefficient)
    return model


def test_every_family_is_built_or_says_why_not() -> None:
    assert {*(name for name in router_families() if name not in NOT_BUILT)} == {
        f"{name}_text" if "vision_config" in options else name for name, (options, _) in TINY.items()
    }


@pytest.mark.parametrize("name", TINY)
def test_the_loss_is_in_the_objective_once_and_reaches_the_router(name: str) -> None:
    model = tiny_experts(name)
    objective = build(run_config(Path("unused")))
    batch = padded(examples([19, 12]))
    scores = TokenScorer(objective)(model, batch)
    assert scores.aux_loss is not None
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        shown = model(**inputs, use_cache=False).aux_loss
    assert shown > 0.5 and torch.allclose(scores.aux_loss, 0.25 * shown, rtol=1e-4)
    wanted = -scores.logps.sum() + scores.aux_loss * objective.count(batch)
    assert torch.allclose(objective(scores, batch).loss_sum, wanted, rtol=1e-5)
    routers = [part for key, part in model.named_parameters() if TINY[name][1] in key and part.dim() == 2]
    assert routers
    gradients = torch.autograd.grad(scores.aux_loss, routers, allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_even_loads_cost_least() -> None:
    """Against the formula: experts * sum of (share of tokens) * (mean probability), for what llama4 leaves to us."""
    model = tiny_experts("llama4_text")
    batch = padded(examples([19, 12]))
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    real = batch["attention_mask"].flatten().bool().repeat(2)
    logits = torch.cat(output.router_logits)[real]
    share = torch.nn.functional.one_hot(logits.argmax(-1), 4).float().mean(0)
    assert torch.allclose(output.aux_loss, 4 * (share * logits.softmax(-1).mean(0)).sum(), rtol=1e-4)


def test_dense_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"moe_aux_loss_coef: llama has no router loss .*mixtral.*; remove"):
        set_router_loss(LlamaConfig(), 0.1)


@pytest.mark.parametrize("name", [name for name in router_families() if name in CONFIG_MAPPING])
def test_the_table_agrees_with_transformers(name: str) -> None:
    config = CONFIG_MAPPING[name]()
    facts = family_facts(config)
    assert not facts.router_logits or hasattr(config, "output_router_logits")
    place = config
    for part in (facts.router_loss or "").split("."):
        assert not part or hasattr(place, part)
        place = getattr(place, part, None)
