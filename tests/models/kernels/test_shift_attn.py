"""Shifted sparse attention against a computation token by token, in the function, in models and in a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.training.models import examples, padded, tiny_model
from tests.training.runs import logged, make_trainer, run_config
from torch import Tensor
from transformers import CONFIG_MAPPING, GPT2Config, LlamaConfig, MistralConfig

from llamafactory.config import load_config
from llamafactory.errors import ConfigError, ModelError
from llamafactory.models.families import families_with
from llamafactory.models.kernels.shift_attn import NAME, group_size, register_shifted, shifted_attention


class Layer(torch.nn.Module):
    """Stands for the attention layer that calls the function."""


def direct(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One row [H, n, D], query by query: who shares its group and comes no later."""
    heads, length, _ = query.shape
    size = 2 * math.ceil(length / 8)
    output = torch.zeros_like(query)
    for head in range(heads):
        source = head * key.shape[0] // heads
        shift = size // 2 if head >= heads // 2 else 0
        for place in range(length):
            seen = [other for other in range(place + 1) if (other + shift) // size == (place + shift) // size]
            scores = (key[source, seen] @ query[head, place]) * scale
            output[head, place] = scores.softmax(0) @ value[source, seen]
    return output


def states(lengths: list[int], heads: int, key_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    width = max(lengths)
    query = torch.randn(len(lengths), heads, width, 4)
    key, value = (torch.randn(len(lengths), key_heads, width, 4) for _ in range(2))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return query, key, value, None if mask.all() else mask


@pytest.mark.parametrize("lengths", [[16], [13], [1], [2], [5, 5], [24, 17, 3, 24]])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_every_row_equals_the_direct_computation(lengths: list[int], heads: int, key_heads: int) -> None:
    query, key, value, mask = states(lengths, heads, key_heads)
    output, _ = shifted_attention(Layer().train(), query, key, value, mask, scaling=0.3)
    assert output.shape == (len(lengths), max(lengths), heads, 4)
    for row, length in enumerate(lengths):
        wanted = direct(query[row, :, :length], key[row, :, :length], value[row, :, :length], 0.3)
        assert torch.allclose(output[row, :length].transpose(0, 1), wanted, atol=1e-5)
        assert not output[row, length:].any()


def test_groups_are_even_quarters() -> None:
    assert [group_size(length) for length in (1, 8, 9, 16, 16384)] == [2, 2, 4, 4, 4096]


def test_evaluation_sees_everything_before() -> None:
    query, key, value, mask = states([12, 7], 4, 2)
    output, _ = shifted_attention(Layer().eval(), query, key, value, mask)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(output[0], wanted[0].transpose(0, 1), atol=1e-5)
    assert torch.allclose(output[1, :7], wanted[1, :, :7].transpose(0, 1), atol=1e-5)
    last, _ = shifted_attention(Layer().eval(), query[:, :, -1:], key, value, mask)
    assert torch.allclose(last[0, 0], wanted[0, :, -1], atol=1e-5)


def test_an_answer_being_generated_does_not_see_padding_before_its_prompt() -> None:
    query, key, value, _ = states([12, 12], 4, 2)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :5] = False
    for num_queries in (1, 3):
        output, _ = shifted_attention(Layer().eval(), query[:, :, -num_queries:], key, value, mask)
        without, _ = shifted_attention(
            Layer().eval(), query[1:, :, -num_queries:], key[1:, :, 5:], value[1:, :, 5:], None
        )
        assert torch.allclose(output[1:], without, atol=1e-6)


FAMILY_OPTIONS: dict[str, dict[str, object]] = {
    "gemma": {"head_dim": 8}, "glm4": {"head_dim": 8}, "qwen3": {"head_dim": 8}, "ernie4_5": {"head_dim": 8},
    "mistral": {"sliding_window": None}, "starcoder2": {"sliding_window": None},
}  # fmt: skip


@pytest.mark.parametrize("family", families_with("shifted"))
def test_family(family: str) -> None:
    """No token sees a later one, padding changes nothing, groups do, and evaluation is the model's own."""
    options = FAMILY_OPTIONS.get(family, {})
    plain = tiny_model(family, **options)
    name = register_shifted(CONFIG_MAPPING[family](**options))
    model = tiny_model(family, attn_implementation=name, **options)
    batch = padded(examples([21, 13]))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        full = plain(**inputs, use_cache=False).logits[1, :13]
        assert torch.allclose(model(**inputs, use_cache=False).logits[1, :13], full, atol=1e-5)
        model.train()
        shifted = model(**inputs, use_cache=False).logits[1, :13]
        alone = model(input_ids=inputs["input_ids"][1:, :13], use_cache=False).logits[0]
        changed = inputs["input_ids"][1:, :13].clone()
        changed[0, 9] = (changed[0, 9] + 1) % 100 + 3
        later = model(input_ids=changed, use_cache=False).logits[0]
    assert not torch.allclose(shifted[4:], full[4:], atol=1e-4)
    assert torch.allclose(shifted, alone, atol=1e-5)
    assert torch.allclose(alone[:9], later[:9], atol=1e-6)
    assert not torch.allclose(alone[9:], later[9:], atol=1e-4)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ModelError, match=r"shift_attn: gpt2 cannot be cut into shifted groups .*llama.*; remove shift"):
        register_shifted(GPT2Config())
    with pytest.raises(ModelError, match="this mistral already looks back 4096 tokens only"):
        register_shifted(MistralConfig(sliding_window=4096))
    with pytest.raises(ModelError, match="this qwen2 already looks back 8 tokens only"):
        register_shifted(CONFIG_MAPPING["qwen2"](use_sliding_window=True, sliding_window=8, max_window_layers=0))
    assert register_shifted(LlamaConfig()) == NAME


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"packing": True}, "shift_attn: true: groups would join packed examples; set packing to false"),
        ({"neat_packing": True}, "shift_attn: true: groups would join packed examples"),
        ({"stage": "pt"}, "shift_attn: true: groups would join packed examples"),
        ({"batch_layout": "flat"}, "shift_attn: true with batch_layout: flat"),
        ({"flash_attn": "fa2"}, "shift_attn: true with flash_attn: fa2: the groups are computed by sdpa"),
        ({"stage": "dpo"}, "shift_attn: true with stage: dpo"),
        ({"mixture_of_depths": "load"}, "shift_attn: true with mixture_of_depths: load"),
        ({"use_unsloth": True}, "shift_attn: true with use_unsloth: true"),
    ],
)
def test_what_it_cannot_stand_beside(options: dict[str, object], sentence: str) -> None:
    run = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o", "shift_attn": True}
    with pytest.raises(ConfigError, match=sentence):
        load_config({**run, **options})


def test_training_with_padding_and_checkpoints(load, model_dir: Path, tmp_path: Path) -> None:
    """Batches of uneven rows learn, the update does not depend on who shares a batch, and the folder is plain."""
    loaded, _, _ = load(model_name_or_path=str(model_dir), finetuning_type="full", shift_attn=True)
    assert loaded.model.config._attn_implementation == NAME
    rows = examples([23, 9, 30, 14, 23, 9, 30, 14], vocab=300)
    trainer = make_trainer(run_config(tmp_path, max_steps=8, learning_rate=5e-3), loaded.model, train=rows)
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < losses[0]
    loaded.model.save_pretrained(tmp_path / "saved")
    again, _, _ = load(model_name_or_path=str(model_dir), trainable=False)
    assert again.model.config._attn_implementation == "sdpa"
