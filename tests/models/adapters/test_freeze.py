"""Freeze: which layers and modules learn, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamafactory.errors import ConfigError
from llamafactory.models.adapters.freeze import chosen_layers


@pytest.mark.parametrize(
    ("wanted", "pro", "expected"),
    [
        (2, False, {6, 7}),
        (-3, False, {0, 1, 2}),
        (99, False, set(range(8))),
        (-99, False, set(range(8))),
        (2, True, {3, 7}),
        (4, True, {1, 3, 5, 7}),
    ],
)
def test_chosen_layers(wanted: int, pro: bool, expected: set[int]) -> None:
    assert chosen_layers(8, wanted, llama_pro=pro) == expected


@pytest.mark.parametrize(
    ("wanted", "pro", "message"),
    [
        (0, False, "got 0, which trains no layer"),
        (3, True, "the model has 8 layers, which must be a multiple"),
        (-2, True, "choose a divisor of 8"),
    ],
)
def test_impossible_layers(wanted: int, pro: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen_layers(8, wanted, llama_pro=pro)


def learned(load, sgd_step, model_dir: Path, **options: object) -> set[str]:
    loaded, _, _ = load(model_name_or_path=str(model_dir), finetuning_type="freeze", **options)
    before = sgd_step(loaded.model)
    return {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}


def test_last_layer_alone_moves(load, sgd_step, model_dir: Path) -> None:
    names = learned(load, sgd_step, model_dir, freeze_trainable_layers=1)
    assert len(names) == 9
    assert all(name.startswith("model.layers.1.") for name in names)


def test_new_rows_that_stay_frozen_are_told(load, model_dir: Path, capsys, caplog) -> None:
    new = {"resize_vocab": True, "add_tokens": "<new>"}
    load(model_name_or_path=str(model_dir), finetuning_type="freeze", freeze_trainable_layers=1, **new)
    assert "rows of new tokens do not learn; add embed_tokens and lm_head" in capsys.readouterr().err + caplog.text


def test_first_layer_alone_moves(load, sgd_step, model_dir: Path) -> None:
    names = learned(load, sgd_step, model_dir, freeze_trainable_layers=-1)
    assert all(name.startswith("model.layers.0.") for name in names)


def test_modules_inside_layers(load, sgd_step, model_dir: Path) -> None:
    names = learned(load, sgd_step, model_dir, freeze_trainable_layers=2, freeze_trainable_modules="mlp,q_proj")
    assert names == {
        f"model.layers.{layer}.{module}.weight"
        for layer in (0, 1)
        for module in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    }


def test_extra_modules(load, sgd_step, untied_dir: Path) -> None:
    names = learned(
        load,
        sgd_step,
        untied_dir,
        freeze_trainable_layers=1,
        freeze_trainable_modules="mlp",
        freeze_extra_modules="norm,lm_head",
    )
    assert {name for name in names if ".layers." not in name} == {"model.norm.weight", "lm_head.weight"}


def test_extra_head_of_a_tied_model_is_the_embedding(load, sgd_step, model_dir: Path) -> None:
    names = learned(load, sgd_step, model_dir, freeze_trainable_layers=1, freeze_extra_modules="lm_head")
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze_trainable_modules": "mlq"},
            r"freeze_trainable_modules: the model has no module 'mlq'.*did you mean 'mlp'",
        ),
        (
            {"freeze_extra_modules": "lm_hed"},
            r"freeze_extra_modules: .*choose from embed_tokens, .*did you mean 'lm_head'",
        ),
    ],
)
def test_unknown_modules(load, model_dir: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(model_name_or_path=str(model_dir), finetuning_type="freeze", **options)
