"""Every optimizer in real runs: it learns, moves what it should, holds less than AdamW, and resumes to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.training.models import examples, tiny_model
from tests.training.runs import logged, make_trainer, run_config, same, weights
from torch import Tensor
from torch.optim import Optimizer

from llamafactory.errors import ConfigError
from llamafactory.optim import build_optimizer
from llamafactory.training.arguments import build_training_arguments
from llamafactory.training.run_state import core_optimizer
from llamafactory.training.trainer import Trainer

GALORE: dict[str, object] = {"use_galore": True, "galore_rank": 4, "galore_update_interval": 5}
APOLLO: dict[str, object] = {"use_apollo": True, "apollo_rank": 4, "apollo_update_interval": 5}
BADAM: dict[str, object] = {"use_badam": True, "badam_switch_interval": 3}
RUNS: dict[str, dict[str, object]] = {
    "galore": GALORE,
    "galore, 8 bits": {**GALORE, "optim": "adamw_8bit"},
    "galore, adafactor": {**GALORE, "optim": "adafactor"},
    "galore, both sides, layerwise": {**GALORE, "galore_proj_type": "full", "galore_layerwise": True},
    "galore by name": {"optim": "galore_adamw_8bit_layerwise", "optim_args": "rank=4,scale=1.0"},
    "apollo": APOLLO,
    "apollo-mini": {**APOLLO, "apollo_rank": 1, "apollo_scale": 128.0, "apollo_scale_type": "tensor"},
    "apollo, layerwise": {**APOLLO, "apollo_layerwise": True, "apollo_proj": "svd"},
    "apollo by name": {"optim": "apollo_adamw", "optim_args": "rank=4,scale=4", "optim_target_modules": "all-linear"},
    "badam": {**BADAM, "badam_switch_mode": "random", "badam_verbose": 2},
    "badam, ratio": {**BADAM, "badam_mode": "ratio", "badam_update_ratio": 0.3, "badam_mask_mode": "scatter"},
    "adam_mini": {"use_adam_mini": True},
    "muon": {"use_muon": True},
    "lomo": {"optim": "lomo", "learning_rate": 0.1},
    "adalomo": {"optim": "adalomo"},
}
BITSANDBYTES = {
    name: {"optim": name} for name in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "ademamix_8bit")
}
WIDE: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128}


def trainer_of(folder: Path, options: dict[str, object], **further: object) -> Trainer:
    config = run_config(
        folder, finetuning_type="full", weight_decay=0.01, lr_scheduler_type="cosine", seed=3, **(further | options)
    )
    return make_trainer(config, tiny_model(**WIDE), train=examples((12, 12, 14, 14)))


def state_bytes(optimizer: Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture(scope="module")
def adamw_bytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    trainer = trainer_of(tmp_path_factory.mktemp("adamw"), {}, max_steps=1)
    trainer.train()
    return state_bytes(core_optimizer(trainer))


QUICK = ("galore, both sides, layerwise", "badam", "muon")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_run_learns_with_less_state_and_resumes_exactly(tmp_path: Path, name: str, adamw_bytes: int) -> None:
    saving = {"max_steps": 16, "save_strategy": "steps", "save_steps": 8}
    whole = trainer_of(tmp_path, RUNS[name], **saving)
    start = weights(whole.model)
    whole.train()
    losses = [loss for _, loss in logged(whole, "loss")]
    norms = [norm for _, norm in logged(whole, "grad_norm")]
    assert losses[-1] < losses[0] - 0.2 and min(norms) > 0
    assert not same(start, weights(whole.model))
    assert state_bytes(core_optimizer(whole)) < 0.75 * adamw_bytes

    resumed = trainer_of(tmp_path, RUNS[name], **saving)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-8")
    assert same(weights(whole.model), weights(resumed.model))
    assert logged(whole)[8:] == logged(resumed)[8:]
    assert state_of(whole) == state_of(resumed)


def state_of(trainer: Trainer) -> str:
    return repr(core_optimizer(trainer).state_dict())


@pytest.mark.parametrize("name", RUNS)
def test_16_bit_weights_learn_and_frozen_ones_stay(tmp_path: Path, name: str) -> None:
    model = tiny_model(**WIDE).bfloat16().train()
    frozen = {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"}
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key not in frozen)
    before = weights(model)
    config = run_config(tmp_path, finetuning_type="full", pure_bf16=True, **RUNS[name])
    optimizer = build_optimizer(model, config, build_training_arguments(config))
    assert optimizer is not None
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    ids = torch.arange(24).view(2, 12)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = weights(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} - {"lm_head.weight"} <= learning
    moved = {key for key in learning if not torch.equal(before[key], after[key])}
    assert len(moved) > 0.6 * len(learning) and not frozen & moved
    assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in after.values())


def test_badam_trains_the_layer_in_turn_and_nothing_else(tmp_path: Path) -> None:
    options = {"use_badam": True, "badam_switch_mode": "fixed", "badam_start_block": 1, "badam_switch_interval": -1}
    trainer = trainer_of(tmp_path, options, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith("model.layers.1.")}
    with pytest.raises(
        ConfigError, match=r"badam_start_block: 7 is too large, because the model has 2 blocks \(0 to 1\)"
    ):
        trainer_of(tmp_path, {**options, "badam_start_block": 7}).create_optimizer()


def test_badam_ratio_leaves_embeddings_alone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RUNS["badam, ratio"], max_steps=1)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still == {"model.embed_tokens.weight", "lm_head.weight"}


def test_muon_leaves_embeddings_and_vectors_to_adamw(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RUNS["muon"])
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    orthogonal = {
        names[id(parameter)]
        for group in trainer.optimizer.param_groups
        if group["orthogonal"]
        for parameter in group["params"]
    }
    assert orthogonal == {name for name in names.values() if "_proj" in name}


def test_adam_mini_knows_the_heads(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RUNS["adam_mini"])
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    heads = {
        names[id(parameter)].split(".")[-2]: group["num_heads"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        if group["num_heads"]
    }
    assert heads == {"q_proj": 4, "k_proj": 2}


def test_targets_are_parts_of_names(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {**GALORE, "galore_target": ("mlp", "q_proj")})
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    chosen = {
        names[id(parameter)].split(".")[-2]
        for group in trainer.optimizer.param_groups
        if "rank" in group
        for parameter in group["params"]
    }
    assert chosen == {"gate_proj", "up_proj", "down_proj", "q_proj"}
    with pytest.raises(ConfigError, match="galore_target: 'attn_out' matches no trained matrix of Llama"):
        trainer_of(tmp_path, {**GALORE, "galore_target": ("attn_out",)}).create_optimizer()
    named = {"optim": "apollo_adamw", "optim_target_modules": r"model\.layers\.\d\.self_attn\.k_proj"}
    trainer = trainer_of(tmp_path, named)
    trainer.create_optimizer()
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups if "rank" in group) == 2


@pytest.mark.parametrize("given", ["rank=0", "rank=a", "size=4", "rank", "proj_type=up"])
def test_optimizer_arguments_are_checked(tmp_path: Path, given: str) -> None:
    with pytest.raises(
        ConfigError, match=r"optim_args: '\S+' is not understood by optim: galore_adamw; write name=value"
    ):
        trainer_of(tmp_path, {"optim": "galore_adamw", "optim_args": given}).create_optimizer()


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bitsandbytes_resumes_exactly(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    saving = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path, BITSANDBYTES[name], **saving)
    whole.train()
    resumed = trainer_of(tmp_path, BITSANDBYTES[name], **saving)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert same(weights(whole.model), weights(resumed.model))
    assert state_of(whole) == state_of(resumed)
    dtypes = {
        value.dtype
        for state in core_optimizer(whole).state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    assert ("8bit" in name) == (torch.uint8 in dtypes)
