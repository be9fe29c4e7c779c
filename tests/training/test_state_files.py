"""Nested state goes to safetensors and JSON and comes back exactly, without pickle."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llamafactory.errors import CheckpointError
from llamafactory.training.state_files import (
    load_optimizer_state,
    load_plain,
    load_state,
    random_state,
    restore_random_state,
    save_plain,
    save_state,
)


def test_a_nested_value_comes_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    value = {
        "state": {0: {"step": torch.tensor(3.0), "half": shared[:3].bfloat16(), "view": shared[3:]}, 1: {}},
        "groups": [{"betas": (0.9, 0.999), "params": [0, 1], "fused": None, "lr": 1e-3, "on": True}],
        "limits": [math.inf, 2**70],
        "array": np.arange(3, dtype=np.uint32),
        "same": [shared, shared],
    }
    save_state(tmp_path / "state.safetensors", value)
    back = load_state(tmp_path / "state.safetensors")
    assert isinstance(back, dict) and back.keys() == value.keys()
    assert (
        torch.equal(back["state"][0]["half"], shared[:3].bfloat16())
        and back["state"][0]["half"].dtype == torch.bfloat16
    )
    assert torch.equal(back["state"][0]["view"], shared[3:]) and back["state"][1] == {}
    assert back["groups"] == value["groups"] and isinstance(back["groups"][0]["betas"], tuple)
    assert back["limits"] == [math.inf, 2**70]
    assert back["array"].dtype == np.uint32 and back["array"].tolist() == [0, 1, 2]
    assert torch.equal(back["same"][1], shared)


def test_plain_values_are_json(tmp_path: Path) -> None:
    save_plain(tmp_path / "plain.json", {"base": [0.1, torch.tensor(0.25)], "lambdas": [None], "best": math.inf})
    assert load_plain(tmp_path / "plain.json") == {"base": [0.1, 0.25], "lambdas": [None], "best": math.inf}
    with pytest.raises(CheckpointError, match=r"plain.json: a state with tensors cannot be saved as JSON"):
        save_plain(tmp_path / "plain.json", {"x": torch.zeros(2)})


def test_what_only_pickle_could_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"value of type set cannot be saved.*never pickle.*save_only_model: true"
    ):
        save_state(tmp_path / "state.safetensors", {"x": {1, 2}})
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="holds no saved state"):
        load_state(tmp_path / "foreign.safetensors")


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)
    save_state(tmp_path / "random.safetensors", random_state())

    def draw() -> list[object]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    expected = draw()
    draw()
    state = load_state(tmp_path / "random.safetensors")
    assert isinstance(state, dict)
    restore_random_state(state)
    assert draw() == expected


def test_fp32_statistics_of_bf16_weights_stay_fp32() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    exact = torch.tensor([0.1234567, 1.0, 2.0])
    state = {"state": {0: {"momentum_buffer": exact}}, "param_groups": optimizer.state_dict()["param_groups"]}
    load_optimizer_state(optimizer, state)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], exact)
