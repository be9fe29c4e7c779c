"""The training command on real files: what it leaves behind, how it goes on, how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from llamafactory.errors import CheckpointError, ConfigError, DataError
from llamafactory.recipes.train import run_train

ROWS = [
    {
        "instruction": f"Say the number {index}.",
        "input": "",
        "output": f"The number is {index}." + " Yes." * (index % 5),
    }
    for index in range(24)
]
REGISTRY = {
    "numbers": {"file_name": "numbers.json"},
    "story": {"file_name": "story.txt", "columns": {"prompt": "text"}},
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "numbers.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (folder / "story.txt").write_text(
        "\n".join(f"Line {index} of a long story." for index in range(40)), encoding="utf-8"
    )
    (folder / "dataset_info.json").write_text(json.dumps(REGISTRY), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options(model_dir: Path, data_dir: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(model_dir),
        "dataset_dir": str(data_dir),
        "dataset": "numbers",
        "template": "chatml",
        "stage": "sft",
        "finetuning_type": "lora",
        "do_train": True,
        "cutoff_len": 128,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
    }


def test_lora_run_leaves_everything_that_chat_and_export_need(options: dict[str, object]) -> None:
    metrics = run_train(options | {"plot_loss": True, "val_size": 4, "do_eval": True, "eval_strategy": "steps"})
    folder = Path(str(options["output_dir"]))
    present = {path.name for path in folder.iterdir()}
    assert {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md", "recipe.yaml", "trainer_log.jsonl", "trainer_state.json",
        "train_results.json", "eval_results.json", "all_results.json", "training_loss.png",
    } <= present  # fmt: skip
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in present)
    assert metrics["eval_perplexity"] > 1
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["current_steps"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["lora_rank"] == 8


def test_the_registry_may_be_a_mapping(options: dict[str, object], data_dir: Path) -> None:
    registry = {"inline": {"file_name": str(data_dir / "numbers.json")}}
    given = options | {"dataset_dir": registry, "dataset": "inline", "max_steps": 1, "save_steps": 1}
    run_train(given)
    recipe = yaml.safe_load((Path(str(options["output_dir"])) / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["dataset_dir"] == registry
    with pytest.raises(CheckpointError, match="the run is finished"):
        run_train(given)


@pytest.mark.parametrize("given", [{"fp16": True}, {"optim": "sgd", "optim_args": "x"}])
def test_what_cannot_be_trained_is_refused_before_anything_is_read(
    options: dict[str, object], given: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=next(reversed(given))):
        run_train(options | given | {"model_name_or_path": str(tmp_path / "no-such-model")})


@pytest.mark.parametrize("finetuning_type", ["full", "freeze"])
def test_full_and_freeze_runs_save_a_whole_model(options: dict[str, object], finetuning_type: str) -> None:
    run_train(options | {"finetuning_type": finetuning_type, "freeze_trainable_layers": 1, "max_steps": 2})
    folder = Path(str(options["output_dir"]))
    assert {"config.json", "generation_config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}


def test_pretraining_packs_text_and_learns(options: dict[str, object]) -> None:
    first = run_train(options | {"stage": "pt", "finetuning_type": "full", "dataset": "story", "max_steps": 1})
    again = {
        "stage": "pt",
        "finetuning_type": "full",
        "dataset": "story",
        "max_steps": 20,
        "overwrite_output_dir": True,
    }
    assert run_train(options | again)["train_loss"] < first["train_loss"]


def test_an_interrupted_run_goes_on_to_the_same_weights(options: dict[str, object], tmp_path: Path) -> None:
    common = options | {"lora_dropout": 0.1, "save_steps": 2, "max_steps": 6, "gradient_accumulation_steps": 2}
    common |= {"lr_scheduler_type": "constant"}
    run_train(common | {"output_dir": str(tmp_path / "straight")})
    run_train(common | {"output_dir": str(tmp_path / "half"), "max_steps": 2})
    run_train(common | {"output_dir": str(tmp_path / "half")})
    straight = load_file(tmp_path / "straight" / "adapter_model.safetensors")
    resumed = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(straight[name].equal(resumed[name]) for name in straight)


def test_a_folder_with_checkpoints_of_other_settings_is_refused(options: dict[str, object]) -> None:
    run_train(options | {"save_steps": 2})
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.01 -> 0\.5.*overwrite_output_dir"):
        run_train(options | {"save_steps": 2, "max_steps": 8, "learning_rate": 0.5})


def test_a_folder_with_weights_only_is_refused_without_naming_keys_nobody_gave(options: dict[str, object]) -> None:
    given = options | {"save_steps": 1, "max_steps": 2, "save_only_model": True}
    run_train(given)
    with pytest.raises(CheckpointError) as refusal:
        run_train(given)
    assert str(refusal.value).startswith(f"output_dir: '{options['output_dir']}' has no complete checkpoint")
    assert "(checkpoint-2, checkpoint-1: it holds weights only" in str(refusal.value)
    assert "resume_from_checkpoint" not in str(refusal.value)
    with pytest.raises(CheckpointError, match=r"^resume_from_checkpoint: "):
        run_train(given | {"resume_from_checkpoint": True})


def test_a_finished_folder_is_refused_and_overwriting_keeps_the_old_files(options: dict[str, object]) -> None:
    run_train(options | {"save_strategy": "no"})
    with pytest.raises(ConfigError, match="already holds trained weights"):
        run_train(options | {"save_strategy": "no"})
    run_train(options | {"save_strategy": "no", "overwrite_output_dir": True})
    aside = Path(str(options["output_dir"])) / "previous_run-1"
    assert (aside / "adapter_model.safetensors").is_file()
    assert (aside / "trainer_log.jsonl").is_file()


def test_asking_to_resume_without_a_checkpoint_says_so(options: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        run_train(options | {"resume_from_checkpoint": True})
    with pytest.raises(CheckpointError, match="does not exist"):
        run_train(options | {"resume_from_checkpoint": "nowhere/checkpoint-5"})


def test_bad_data_stops_before_the_model_is_read_and_is_recorded(options: dict[str, object], data_dir: Path) -> None:
    (data_dir / "numbers.json").write_text(json.dumps([*ROWS, {"instruction": "x", "output": 7}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"numbers\.json.*25"):
        run_train(options)
    report = json.loads((Path(str(options["output_dir"])) / "error.json").read_text(encoding="utf-8"))
    assert report["exit_code"] == 2


def test_parts_that_do_not_exist_yet_are_refused_in_one_sentence(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="fp8_backend: 'te'"):
        run_train(options | {"fp8_backend": "te"})
