"""Runs whose LoRA starts from data: what they save fits the base everywhere, and an interrupted run goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamafactory.recipes.export import run_export
from llamafactory.recipes.train import run_train

ROWS = [{"instruction": f"Say {index}.", "input": "", "output": f"It is {index}."} for index in range(12)]
IDS = torch.arange(40, 72).reshape(2, 16)


@pytest.fixture
def options(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return {
        "model_name_or_path": str(model_dir), "dataset_dir": {"rows": {"file_name": str(tmp_path / "rows.json")}},
        "dataset": "rows", "template": "chatml", "do_train": True, "cutoff_len": 64, "per_device_train_batch_size": 4,
        "max_steps": 4, "logging_steps": 1, "learning_rate": 0.01, "lr_scheduler_type": "constant", "use_cpu": True,
        "lora_init_batches": 2, "lora_rank": 4, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("given", [{"lora_init": "eva"}, {"lora_init": "lora_ga", "pissa_convert": True}], ids=str)
def test_a_start_from_data_is_saved_resumed_and_merged(
    options: dict[str, object], given: dict[str, object], model_dir: Path, tmp_path: Path
) -> None:
    common = {**options, **given, "save_steps": 2}
    run_train({**common, "output_dir": str(tmp_path / "half"), "max_steps": 2})
    run_train(common)
    run_train({**common, "output_dir": str(tmp_path / "half")})
    straight, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "half"))
    assert straight.keys() == resumed.keys() and all(straight[name].equal(resumed[name]) for name in straight)
    foreign = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), str(tmp_path / "run"))
    run_export({
        "model_name_or_path": str(model_dir), "adapter_name_or_path": str(tmp_path / "run"), "template": "chatml",
        "export_dir": str(tmp_path / "merged"),
    })  # fmt: skip
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - logits(foreign)).abs().max() < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "run" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
