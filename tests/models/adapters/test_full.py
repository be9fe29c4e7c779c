"""Full fine-tuning trains everything."""

from __future__ import annotations

from pathlib import Path

import torch


def test_every_parameter_learns(load, sgd_step, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), finetuning_type="full")
    before = sgd_step(loaded.model)
    assert all(not torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
