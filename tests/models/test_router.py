"""The router loss of mixture-of-experts models."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts, router_families
from llamafactory.models.router import set_router_loss


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


def test_dense_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"moe_aux_loss_coef: llama has no router loss .*mixtral.*; remove"):
        set_router_loss(LlamaConfig(), 0.1)


@pytest.mark.parametrize("name", [name for name in router_families() if name in CONFIG_MAPPING])
def test_the_table_agrees_with_transformers(name: str) -> None:
    config = CONFIG_MAPPING[name]()
    facts = family_facts(config)
    assert not facts.router_logits or hasattr(config, "output_router_logits")
    assert facts.router_loss is None or hasattr(config, facts.router_loss)
