"""Preference stages on real files: every stage with every method, what is written, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llamafactory.config import load_config
from llamafactory.errors import DataError
from llamafactory.models.load import load_model
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.recipes.train import run_train

PAIRS = [
    {"instruction": f"Say {index}.", "chosen": f"The number is {index}.", "rejected": "No." + " Never." * (index % 4)}
    for index in range(12)
]
JUDGED = [
    {"instruction": f"Say {index}.", "output": f"The number is {index}." if index % 2 else "No.", "ok": bool(index % 2)}
    for index in range(12)
]
REGISTRY = {
    "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}},
    "judged": {"file_name": "judged.json", "columns": {"kto_tag": "ok"}},
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("pairs", PAIRS), ("judged", JUDGED)):
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(REGISTRY), encoding="utf-8")
    return folder


@pytest.fixture
def options(model_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    return {
        "model_name_or_path": str(model_dir), "dataset_dir": str(data_dir), "dataset": "pairs", "template": "chatml",
        "stage": "dpo", "finetuning_type": "lora", "do_train": True, "cutoff_len": 128, "max_steps": 2,
        "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 0.01, "use_cpu": True,
        "lr_scheduler_type": "constant", "output_dir": str(tmp_path / "run"), "freeze_trainable_layers": 1,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
@pytest.mark.parametrize("stage", ["dpo", "orpo", "simpo", "kto"])
def test_two_steps_resume_and_reload(options: dict[str, object], stage: str, method: str) -> None:
    options |= {"stage": stage, "finetuning_type": method, "save_steps": 1}
    options |= {"dataset": "judged"} if stage == "kto" else {}
    folder = Path(str(options["output_dir"]))
    run_train(options)
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    straight = load_file(folder / name)
    shutil.rmtree(folder / "checkpoint-2")
    (folder / name).unlink()
    run_train(options)
    resumed = load_file(folder / name)
    assert straight.keys() == resumed.keys()
    assert all(straight[key].equal(resumed[key]) for key in straight)
    config = load_config(folder, command="chat")
    model = load_model(config, load_tokenizer(config), trainable=False).model
    if method != "lora":
        assert model.state_dict()["model.norm.weight"].equal(resumed["model.norm.weight"])


def test_metrics_of_pairs_are_logged_evaluated_and_drawn(options: dict[str, object]) -> None:
    asked = {"val_size": 4, "do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "plot_loss": True}
    metrics = run_train(options | asked)
    names = {
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
        "logps/rejected", "logits/chosen", "logits/rejected", "loss",
    }  # fmt: skip
    assert {f"eval_{name}" for name in names} <= metrics.keys()
    folder = Path(str(options["output_dir"]))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert names <= history[0].keys()
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["accuracy"] == history[0]["rewards/accuracies"]
    assert names - {"loss"} <= lines[0].keys() and {f"eval_{name}" for name in names} <= lines[1].keys()
    assert (folder / "training_rewards_accuracies.png").is_file()
    assert (folder / "training_rewards_margins.png").is_file()


def test_orpo_reports_its_two_terms_and_kto_its_kl(options: dict[str, object]) -> None:
    for stage, data, names in (("orpo", "pairs", {"sft_loss", "odds_ratio_loss"}), ("kto", "judged", {"kl"})):
        folder = Path(str(options["output_dir"])) / stage
        metrics = run_train(
            options
            | {
                "stage": stage,
                "dataset": data,
                "output_dir": str(folder),
                "val_size": 4,
                "do_eval": True,
                "max_steps": 1,
            }
        )
        assert {f"eval_{name}" for name in names} <= metrics.keys()


def test_a_reference_model_with_an_adapter(options: dict[str, object], model_dir: Path, tmp_path: Path) -> None:
    run_train(options | {"output_dir": str(tmp_path / "first")})
    named = {"ref_model": str(model_dir), "ref_model_adapters": str(tmp_path / "first"), "max_steps": 1}
    history = []
    for folder, more in (("plain", {}), ("against", named), ("each step", {**named, "precompute_ref_logps": False})):
        run_train(options | {"output_dir": str(tmp_path / folder), "max_steps": 1} | more)
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text(encoding="utf-8"))
        history.append(state["log_history"][0])
    plain, against, each_step = history
    assert plain["rewards/margins"] == 0.0 and against["rewards/margins"] < 0
    assert each_step["rewards/margins"] == pytest.approx(against["rewards/margins"], abs=1e-6)


def test_rows_that_cannot_be_compared_are_named(options: dict[str, object], data_dir: Path) -> None:
    path = data_dir / "pairs.json"
    path.write_text(json.dumps([*PAIRS, {"instruction": "x", "chosen": "y"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.json:13.*rejected"):
        run_train(options)
    path.write_text(json.dumps([*PAIRS, {"instruction": "x", "chosen": "y", "rejected": "y"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.json:13.*rejected.*differs from the chosen one.*remove the row"):
        run_train(options)


def test_what_has_no_effect_is_told(options: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llamafactory"):
        run_train(options | {"lora_dropout": 0.1, "max_steps": 1})
        run_train(options | {"stage": "kto", "dataset": "judged", "max_steps": 1, "overwrite_output_dir": True})
    assert "lora_dropout: 0.1 has no effect in stage dpo, which compares answers without random masks" in caplog.text
    assert "kto: 6 answers are marked good and 6 bad, with their weights 1.00 to 1" in caplog.text
