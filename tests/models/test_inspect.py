"""Counting parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from llamafactory.errors import ModelError
from llamafactory.models.build import refuse_meta
from llamafactory.models.inspect import count_parameters, parameter_status


def test_counts_and_line() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    count = count_parameters(model)
    assert (count.trainable, count.total) == (3, 11)
    assert count.line() == "trainable params: 3 || all params: 11 || trainable: 27.2727%"
    assert next(parameter_status(model)) == "name: 0.weight, dtype: torch.float32, device: cpu, trainable: False"


def test_the_line_is_a_note(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir))
    assert count_parameters(loaded.model).line() in loaded.notes


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(ModelError, match=r"x: 2 tensors were left without values, such as weight"):
        refuse_meta(nn.Linear(2, 2, device="meta"), "x")
