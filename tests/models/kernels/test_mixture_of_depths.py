"""Mixture-of-depths: a layer against arithmetic, causality, padding, saving, training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.training.models import examples, padded, tiny_model
from tests.training.runs import logged, make_trainer, run_config
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.errors import ConfigError, ModelError
from llamafactory.models.build import reload_model
from llamafactory.models.families import families_with
from llamafactory.models.kernels.mixture_of_depths import (
    MARK,
    ROUTER_LOSS,
    DepthLayer,
    _chosen_mask,
    apply_depths,
    choose_tokens,
)
from llamafactory.models.quantization import Quantization, mark
from llamafactory.recipes.train import run_train

FAMILY_OPTIONS: dict[str, dict[str, object]] = {
    "gemma": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64, "attn_implementation": "eager"},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
}


def converted(family: str = "llama", **options: object) -> PreTrainedModel:
    model = tiny_model(family, **{**FAMILY_OPTIONS.get(family, {}), **options})
    assert apply_depths(model, "convert", None, trainable=True)
    for layer in model.get_decoder().layers:
        if isinstance(layer, DepthLayer):
            torch.nn.init.normal_(layer.router.weight, std=0.5)
    return model


def logits(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def test_largest_eighth_of_real_tokens() -> None:
    scores = torch.tensor([[5.0, -1, 3, 4, 0, 0, 0, 0, 9], [1.0, 2, 3, -4, 5, 6, 7, 8, 9]])
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, 8] = False  # 8 real tokens: one is chosen; 9: two
    assert choose_tokens(scores, real, training=True).nonzero().tolist() == [[0, 0], [1, 7], [1, 8]]
    assert choose_tokens(scores, real, training=False).sum(1).tolist() == [3, 8]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_layer_equals_the_paper(attention: str, training: bool) -> None:
    """x + r f(chosen) for the chosen, x for the others, where f comes from the plain layer on the chosen alone."""
    plain = tiny_model(attn_implementation=attention)
    model = converted(attn_implementation=attention).train(training)
    layer, plain_layer = model.model.layers[1], plain.model.layers[1]
    torch.manual_seed(3)
    hidden, places = torch.randn(1, 24, 32), torch.arange(24)[None]
    cos, sin = model.model.rotary_emb(hidden, places)
    whole = torch.full((24, 24), torch.finfo(torch.float).min).triu(1)[None, None] if attention == "eager" else None
    output = layer(hidden, attention_mask=whole, position_embeddings=(cos, sin), position_ids=places)
    scores = hidden[0] @ layer.router.weight[0]
    chosen = sorted(scores.topk(3).indices.tolist()) if training else (scores > 0).nonzero().flatten().tolist()
    causal = torch.full((len(chosen), len(chosen)), torch.finfo(torch.float).min).triu(1)[None, None]
    alone = plain_layer(hidden[:, chosen], attention_mask=causal, position_embeddings=(cos[:, chosen], sin[:, chosen]))
    wanted = hidden.clone()
    wanted[0, chosen] += scores[chosen, None] * (alone[0] - hidden[0, chosen])
    assert torch.allclose(output, wanted, atol=1e-5)
    if training:
        targets = torch.zeros(24).index_fill(0, torch.tensor(chosen), 1.0)
        cross = torch.where(targets > 0, -scores.sigmoid().log(), -(1 - scores.sigmoid()).log()).mean()
        assert torch.allclose(layer.routing_loss, cross, atol=1e-5)


@pytest.mark.parametrize("family", families_with("depths"))
def test_family_is_causal_in_evaluation_and_ignores_padding(family: str) -> None:
    model = converted(family)
    batch = padded(examples([25, 17]))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    short = ids[1:, :17]
    for training in (False, True):
        model.train(training)
        assert torch.allclose(logits(model, ids, mask)[1, :17], logits(model, short)[0], atol=1e-5)
    model.eval()
    assert not torch.allclose(logits(model, short), logits(tiny_model(family, **FAMILY_OPTIONS.get(family, {})), short))
    changed = short.clone()
    changed[0, 11] = 7 if changed[0, 11] != 7 else 8
    assert torch.allclose(logits(model, changed)[:, :11], logits(model, short)[:, :11], atol=1e-6)


def test_nothing_chosen_passes_everything_by() -> None:
    model = converted()
    layer = model.model.layers[1]
    torch.nn.init.zeros_(layer.router.weight)
    hidden = torch.randn(2, 5, 32)
    assert layer(hidden) is hidden
    with pytest.raises(ModelError, match="tokens that skip layers leave no keys"):
        layer(hidden, past_key_values=object())


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    model = converted()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[MARK] == {"capacity": 0.125, "layers": [1]}
    ids = torch.arange(20)[None] + 3
    again = reload_model(tmp_path, "auto")
    assert isinstance(again.model.layers[1], DepthLayer) and not isinstance(again.model.layers[0], DepthLayer)
    assert torch.equal(logits(again, ids), logits(model.eval(), ids))
    assert again.config.use_cache is False and again.generation_config.use_cache is False
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"lacks 1 routers .* model.layers.1.router.weight; use the whole folder"):
        apply_depths(AutoModelForCausalLM.from_config(again.config), None, tmp_path, trainable=False)


def test_training_routes_saves_and_answers(load, model_dir: Path, tmp_path: Path) -> None:
    """Through the loader and the trainer, with checkpointing; chat from the folder needs no option."""
    options = {"finetuning_type": "full", "model_name_or_path": str(model_dir)}
    loaded, _, _ = load(**options, mixture_of_depths="convert")
    assert any("1 of 2 layers compute 12.5% of the tokens" in note for note in loaded.notes)
    model = loaded.model
    router = model.model.layers[1].router.weight
    before = router.detach().clone()
    rows = examples([24, 9, 30, 14] * 3, vocab=300)
    trainer = make_trainer(run_config(tmp_path / "run", max_steps=10, learning_rate=1e-2), model, train=rows)
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < losses[0] - 0.2 and not torch.equal(before, router)
    model.save_pretrained(tmp_path / "saved")
    loaded.model.eval()
    _tokenizer_beside(model_dir, tmp_path / "saved")
    again, _, _ = load(trainable=False, model_name_or_path=str(tmp_path / "saved"))
    ids = torch.tensor([rows[0]["input_ids"]])
    assert torch.allclose(logits(again.model, ids), logits(model, ids), atol=1e-6)
    assert again.model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4
    with ChatModel({"model_name_or_path": str(tmp_path / "saved"), "template": "chatml", "max_new_tokens": 4}) as chat:
        assert chat.chat([{"role": "user", "content": "hi"}]).completion_tokens <= 4
    further, _, _ = load(**{**options, "model_name_or_path": str(tmp_path / "saved")}, mixture_of_depths="load")
    assert torch.equal(further.model.model.layers[1].router.weight, router.detach())


def _tokenizer_beside(source: Path, target: Path) -> None:
    for file in source.glob("tokenizer*"):
        (target / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    from llamafactory.models.checkpointing import enable_checkpointing

    def gradients(checkpoints: bool) -> dict[str, Tensor]:
        model = converted().train()
        if checkpoints:
            assert enable_checkpointing(model, reentrant=reentrant) == 2
        batch = padded(examples([25, 17]))
        output = model(**batch, use_cache=False)
        (output.loss + ROUTER_LOSS * output.aux_loss).backward()
        return {name: part.grad for name, part in model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    assert plain["model.layers.1.router.weight"].any()
    for name, value in plain.items():
        assert torch.allclose(value, recomputed[name], atol=1e-6), name


def test_the_loss_of_the_router_is_added_once() -> None:
    from llamafactory.objectives.sft import build
    from llamafactory.training.scoring import TokenScorer

    model = converted().train()
    objective = build(run_config(Path("unused")))
    batch = padded(examples([25, 17]))
    scores = TokenScorer(objective)(model, batch)
    wanted = model.model.layers[1].routing_loss * ROUTER_LOSS
    assert torch.allclose(scores.aux_loss, wanted)
    count = objective.count(batch)
    assert torch.allclose(objective(scores, batch).loss_sum, -scores.logps.sum() + wanted * count, rtol=1e-5)


def test_what_cannot_be_routed_is_told(tmp_path: Path) -> None:
    plain = tiny_model()
    with pytest.raises(ModelError, match=r"gpt2 has layers this cannot route around .*llama"):
        apply_depths(
            AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1)), "convert", None, trainable=True
        )
    with pytest.raises(ModelError, match="load: this llama was never converted"):
        apply_depths(plain, "load", tmp_path, trainable=True)
    with pytest.raises(ModelError, match="new routers must be trained first"):
        apply_depths(plain, "convert", tmp_path, trainable=False)
    with pytest.raises(ModelError, match="has been converted already; write load"):
        apply_depths(converted(), "convert", tmp_path, trainable=True)
    with pytest.raises(ModelError, match=r"routes tokens around its layers .*; write load to train it on"):
        apply_depths(converted(), None, tmp_path, trainable=True)
    packed = converted()
    mark(packed, Quantization("bnb", 4), tmp_path)
    with pytest.raises(ModelError, match="quantized layers hold no router; remove quantization_bit"):
        apply_depths(packed, None, tmp_path, trainable=False)
    assert apply_depths(plain, None, tmp_path, trainable=True) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"packing": True}, "mixture_of_depths: convert: tokens are chosen among those of one example"),
        ({"finetuning_type": "lora"}, "mixture_of_depths: convert with finetuning_type: lora: new routers must learn"),
        ({"flash_attn": "fa2"}, "mixture_of_depths: convert with flash_attn: fa2: the chosen tokens need a mask"),
        ({"stage": "dpo"}, "mixture_of_depths: convert with stage: dpo"),
        ({"use_asft_loss": True}, "mixture_of_depths: convert with use_asft_loss: true: a model with new routers"),
        ({"torch_compile": True}, "mixture_of_depths: convert with torch_compile: true"),
    ],
)
def test_what_it_cannot_stand_beside(options: dict[str, object], sentence: str) -> None:
    run = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o", "finetuning_type": "full"}
    with pytest.raises(ConfigError, match=sentence):
        load_config({**run, "mixture_of_depths": "convert", **options})


def test_windows_of_attention_hold_between_the_chosen() -> None:
    """Positions 1, 4 and 6 of a window of 4: 6 sees 4 and not 1; the fill (0) stands last."""
    place = torch.arange(8)
    window = (place[:, None] >= place) & (place[:, None] - place < 4)
    index = torch.tensor([[1, 4, 6, 0]])
    seen = _chosen_mask(window[None, None], index, torch.float)[0, 0]
    assert seen.tolist() == [[True, False, False, False], [True, True, False, False], [False, True, True, False],
                             [False, False, False, True]]  # fmt: skip
    added = torch.zeros(1, 1, 8, 8).masked_fill(~window, torch.finfo(torch.float).min)
    assert torch.equal(_chosen_mask(added, index, torch.float)[0, 0] == 0, seen)


def test_a_run_answers_questions_at_its_end(model_dir: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {index}.", "output": f"It is {index}."} for index in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    options = {
        "model_name_or_path": str(model_dir), "dataset_dir": str(tmp_path), "dataset": "rows", "eval_dataset": "rows",
        "template": "chatml", "do_train": True, "finetuning_type": "full", "mixture_of_depths": "convert",
        "predict_with_generate": True, "do_predict": True, "max_new_tokens": 2, "max_steps": 1, "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    assert run_train(options)["predict_failed"] == 0
