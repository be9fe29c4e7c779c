"""Which models' answers can share a cache, over families with other positions, caches and layers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from tests.inference.engines_on_tiny_models import (
    TOKENIZER,
    concurrent,
    sequential,
    stir,
    stirred_model,
    text_of,
    varied,
)
from torch import nn
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llamafactory import logs
from llamafactory.inference.row_cache import COLUMNS, RowDecoder, why_not_shared

SIZES = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
SHARED: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, n_positions=256)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    ),
}
ALONE: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "gemma3": (
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**SIZES, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        ),
        "its cache has layers of the kind DynamicSlidingWindowLayer",
    ),
    "mistral": (
        lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
        "its cache has layers of the kind DynamicSlidingWindowLayer",
    ),
    "mamba": (
        lambda: FalconMambaForCausalLM(
            FalconMambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "its cache has layers of the kind LinearAttentionLayer",
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_families_that_share_a_cache(name: str) -> None:
    model = stir(SHARED[name]())
    assert why_not_shared(model) == ""
    asked = varied(5)
    together, alone = concurrent(model, asked), sequential(model, asked)
    assert [text_of(deltas) for deltas in together] == [text_of(deltas) for deltas in alone]


@pytest.mark.parametrize("name", ALONE)
def test_families_whose_answers_are_made_one_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logs.notice.cache_clear()
    monkeypatch.setattr(logging.getLogger("llamafactory"), "propagate", True)
    build, reason = ALONE[name]
    model = stir(build())
    assert why_not_shared(model) == reason
    asked = varied(2)
    found = [text_of(deltas) for deltas in concurrent(model, asked)]
    assert f"answers of this model are made one at a time, not together, because {reason}" in caplog.text
    for (prompt, options), text in zip(asked, found, strict=True):
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
        made = model.generate(
            ids, max_new_tokens=options.max_new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=0
        )
        assert text == TOKENIZER.decode(made[0, ids.shape[1] :])


def test_a_model_that_does_not_heed_positions_is_found_out() -> None:
    """Deaf to position_ids, each row of a shared step would sit at the longest row's place."""
    model = stirred_model()
    forward = model.model.forward

    def deaf(**inputs: object) -> object:
        return forward(**{**inputs, "position_ids": None})

    model.model.forward = deaf
    assert why_not_shared(model).startswith("logits of a shared step differ by")


def test_without_a_cache_nothing_is_shared() -> None:
    model = stirred_model()
    model.config.use_cache = False
    assert why_not_shared(model) == "use_kv_cache is false"


def test_a_model_that_cannot_make_the_trial_step_keeps_its_own_way() -> None:
    model = stirred_model()
    model.lm_head = nn.Linear(31, 600)
    assert why_not_shared(model) == "a trial step failed with RuntimeError"


def test_rows_grow_and_move_without_changing_what_they_hold() -> None:
    """Three rows, the longest past the first allocation: logits of each equal those of the row alone."""
    model = stirred_model(max_length=COLUMNS + 50)
    decoder = RowDecoder(model, max_rows=3)
    rows = [list(range(7, 7 + size)) for size in (3, 9, COLUMNS - 1)]
    with torch.inference_mode():
        for place, ids in enumerate([*rows[:2], [token % 400 for token in rows[2]]]):
            rows[place] = ids
            cache = decoder.new_cache()
            decoder.read(ids[:-1], cache)
            decoder.insert(place, cache)
        for _ in range(4):
            logits = decoder.step([ids[-1] for ids in rows], [len(ids) - 1 for ids in rows])
            alone = torch.cat([decoder.read(ids, decoder.new_cache()) for ids in rows])
            torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
            rows = [[*ids, (ids[-1] * 3) % 400] for ids in rows]
        decoder.move(2, 0, len(rows[2]) - 1)
        logits = decoder.step([rows[2][-1], rows[1][-1]], [len(rows[2]) - 1, len(rows[1]) - 1])
        alone = torch.cat([decoder.read(ids, decoder.new_cache()) for ids in (rows[2], rows[1])])
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
