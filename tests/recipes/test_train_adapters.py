"""Adapters that need the whole run: what they save fits the base everywhere, and an interrupted run goes on exactly."""

from __future__ import annotations

import collections
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamafactory.models.expand import expand_model
from llamafactory.recipes.export import run_export
from llamafactory.recipes.train import run_train
from llamafactory.training.callbacks.rank_allocation import (
    allocate,
    budget,
    observe,
    orthogonality_gradient,
    triplets,
)

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


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "run" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


GIVEN = [
    {"lora_init": "eva"},
    {"lora_init": "lora_ga", "pissa_convert": True},
    {"finetuning_type": "adalora", "max_steps": 10},
    pytest.param({"lora_init": "eva", "quantization_bit": 4}, marks=pytest.mark.extra),
    pytest.param({"finetuning_type": "oft", "oft_block_size": 8, "quantization_bit": 4}, marks=pytest.mark.extra),
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_is_saved_resumed_and_merged(
    options: dict[str, object], given: dict[str, object], model_dir: Path, tmp_path: Path
) -> None:
    if "quantization_bit" in given:
        pytest.importorskip("bitsandbytes")
    given = {**options, **given}
    run_train({**given, "save_steps": int(str(given["max_steps"])) // 2})
    shutil.copytree(tmp_path / "run", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / f"checkpoint-{given['max_steps']}")
    (tmp_path / "half" / "adapter_model.safetensors").unlink()
    run_train({**given, "save_steps": int(str(given["max_steps"])) // 2, "output_dir": str(tmp_path / "half")})
    straight, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "half"))
    assert straight.keys() == resumed.keys() and all(straight[name].equal(resumed[name]) for name in straight)
    if given.get("finetuning_type") == "adalora":
        values = [value for name, value in straight.items() if "lora_E" in name]
        assert sum(int(value.count_nonzero()) for value in values) == 4 * len(values) < sum(map(len, values))
    foreign = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), str(tmp_path / "run"))
    run_export({
        "model_name_or_path": str(model_dir), "adapter_name_or_path": str(tmp_path / "run"), "template": "chatml",
        "export_dir": str(tmp_path / "merged"), "finetuning_type": given.get("finetuning_type", "lora"),
    })  # fmt: skip
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - logits(foreign)).abs().max() < 1e-4
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.mark.parametrize(
    ("method", "fix"), [("olora", "set pissa_convert: true for one that fits"), ("loftq", "use `export` for them")]
)
def test_an_adapter_that_only_we_read_is_told(
    options: dict[str, object],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    method: str,
    fix: str,
) -> None:
    run_train({**options, "lora_init": method, "max_steps": 1})
    told = capsys.readouterr().err + caplog.text
    assert "does not fit the plain base in other programs" in told and fix in told


@pytest.mark.parametrize(("stage", "method"), [("rm", "lora_ga"), ("orpo", "lora_ga"), ("kto", "eva")])
def test_every_stage_starts_from_its_own_loss(
    options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, method: str
) -> None:
    rows = [{**row, "chosen": "yes", "rejected": "no", "ok": bool(index % 2)} for index, row in enumerate(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    pair = {"ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    shape = {"columns": {"kto_tag": "ok"}} if stage == "kto" else pair
    registry = {"rows": {"file_name": str(tmp_path / "rows.json"), **shape}}
    run_train({**options, "stage": stage, "lora_init": method, "dataset_dir": registry, "max_steps": 1})
    assert f"lora_init: {method}: 14 layers start from 2 batches" in caplog.messages


def test_only_the_added_blocks_learn(options: dict[str, object], model_dir: Path, tmp_path: Path) -> None:
    assert expand_model(str(model_dir), 2, tmp_path / "pro") == 4
    given = {"model_name_or_path": str(tmp_path / "pro"), "finetuning_type": "freeze", "use_llama_pro": True}
    run_train({**options, **given, "freeze_trainable_layers": 2, "max_steps": 8})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("pro", "run"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert {name.split(".")[2] for name in moved} == {"1", "3"} and all(".layers." in name for name in moved)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


class _Optimizer:
    """Holds state, as an optimizer does."""

    def __init__(self) -> None:
        self.state: dict = collections.defaultdict(dict)


def test_ranks_go_as_peft_allocates_them() -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 6))
    options = AdaLoraConfig(target_modules=["0", "1"], init_r=4, target_r=2, tinit=1, tfinal=2, total_step=9)
    model = AdaLoraModel(base, options, "default")
    layers, optimizer = list(triplets(model)), _Optimizer()
    assert len(layers) == 2
    for step in range(1, 8):
        for weight in (weight for layer in layers for weight in layer):
            weight.data = torch.randn_like(weight)
            weight.grad = torch.randn_like(weight)
            observe(weight, optimizer)
        before = [values.detach().clone() for _, values, _ in layers]
        num_kept = budget(step, 1, 7, 8, 4)
        model.rankallocator.peft_config.total_step = 10  # PEFT stops observing one update earlier than it allocates
        assert model.rankallocator.budget_schedule(step)[0] == budget(step, 1, 8, 8, 4)
        model.rankallocator.update_ipt(model)
        if num_kept == 8:
            continue
        theirs = list(model.rankallocator.mask_to_budget(model, num_kept).values())
        for values, value in zip((values for _, values, _ in layers), before, strict=True):
            values.data = value
        allocate(layers, optimizer, num_kept)
        assert [optimizer.state[values]["kept"].flatten().tolist() for _, values, _ in layers] == theirs
        assert sum(int(values.count_nonzero()) for _, values, _ in layers) == num_kept


def test_the_orthogonality_gradient_is_that_of_the_squared_norm() -> None:
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (rows @ rows.T - torch.eye(3, dtype=torch.float64)).square().sum().backward()
    assert torch.allclose(orthogonality_gradient(rows.detach()), rows.grad)
