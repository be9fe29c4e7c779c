"""Every example is read without a complaint, names files that exist, and the CPU-sized ones run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from llamafactory.config import load_config
from llamafactory.recipes.init import run_init
from llamafactory.recipes.predict import run_predict
from llamafactory.recipes.train import run_train

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOT_RUNS = {"accelerate", "deepspeed"}
RUNS = sorted(
    path
    for path in EXAMPLES.rglob("*.yaml")
    if path.relative_to(EXAMPLES).parts[0] not in NOT_RUNS and path.name != "tokens.yaml"
)
COMMAND = re.compile(r"^#   (?P<line>\S.*)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def command_line(path: Path) -> list[str]:
    """The command written in the comment at the top of an example."""
    match = COMMAND.search(path.read_text(encoding="utf-8"))
    assert match, f"{path} does not say how to run it"
    return shlex.split(match["line"])


def command_name(path: Path) -> str:
    words = command_line(path)
    program = words.index("llamafactory-cli" if "llamafactory-cli" in words else "llamafactory")
    return words[program + 1]


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_example_names_its_own_path(path: Path) -> None:
    assert command_line(path)[-1] == f"examples/{name_of(path)}"


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_example_is_read_without_notices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(path, command=command_name(path))
    assert config.notices == ()
    assert config.model.model_name_or_path


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_example_names_files_and_data_sets_that_exist(path: Path) -> None:
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    registry = json.loads((ROOT / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    for key in ("dataset", "eval_dataset"):
        assert [name for name in keys.get(key, "").split(",") if name and name not in registry] == []
    for key in ("deepspeed", "new_special_tokens_config", "export_quantization_dataset"):
        assert key not in keys or (ROOT / keys[key]).is_file()


@pytest.mark.parametrize("path", sorted((EXAMPLES / "deepspeed").glob("*.json")), ids=name_of)
def test_deepspeed_settings_leave_sizes_to_the_trainer(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings["train_micro_batch_size_per_gpu"] == settings["gradient_accumulation_steps"] == "auto"
    assert 0 <= settings["zero_optimization"]["stage"] <= 3


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=name_of)
def test_accelerate_reads_its_settings(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    settings = load_config_from_file(str(path))
    assert settings.distributed_type == "FSDP"


def cli(folder: Path, *words: str, text: str = "") -> str:
    """Run `llamafactory-cli WORDS` in the workplace `folder`; return what it printed."""
    result = subprocess.run(
        [str(folder / "programs" / "llamafactory-cli"), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def run(path: Path, folder: Path, *overrides: str, text: str = "") -> str:
    """Run the command of an example in `folder`; return what it printed."""
    words = command_line(path)
    assert words[0] == "llamafactory-cli"
    return cli(folder, *words[1:], *overrides, text=text)


@pytest.fixture(scope="module")
def workplace(finished_quickstart: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of our own with data, examples, the tiny model, and the result of quickstart.yaml."""
    folder = tmp_path_factory.mktemp("work") / "place"
    shutil.copytree(finished_quickstart, folder, symlinks=True)
    (folder / "programs").symlink_to(programs)
    return folder


@pytest.mark.slow
def test_quickstart_learns_who_it_is(workplace: Path) -> None:
    result = workplace / "saves" / "quickstart"
    assert (result / "training_loss.png").stat().st_size > 1000
    answer = run(EXAMPLES / "quickstart" / "chat_tiny.yaml", workplace, text="who are you?\nexit\n")
    assert "I am Lumo, a small assistant trained with llamafactory." in answer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["freeze_sft_tiny", "pretrain_tiny", "streaming_sft_tiny"])
def test_tiny_run(workplace: Path, name: str) -> None:
    path = EXAMPLES / "quickstart" / f"{name}.yaml"
    run(path, workplace)
    folder = workplace / yaml.safe_load(path.read_text(encoding="utf-8"))["output_dir"]
    assert (folder / "model.safetensors").is_file()
    losses = [json.loads(line).get("loss") for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0] or len(losses) == 1


EIGHT_BIT = pytest.param("adamw_8bit", marks=pytest.mark.extra)
OPTIMIZERS = ("adalomo", "adam_mini", EIGHT_BIT, "apollo", "badam", "galore", "muon")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as `init` makes it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    run_init([str(folder), "--data_dir", str(ROOT / "data")])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_example_on_a_tiny_model(
    tiny: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(ROOT)
    (path,) = (EXAMPLES / "extras" / name).glob("*.yaml")
    smaller = {
        "model_name_or_path": tiny, "output_dir": tmp_path, "template": "chatml", "cutoff_len": 64, "max_samples": 16,
        "max_steps": 2, "preprocessing_num_workers": 1, "plot_loss": "false", "use_cpu": "true",
    }  # fmt: skip
    metrics = run_train(load_config([str(path), *(f"{key}={value}" for key, value in smaller.items())]))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path))
    assert metrics["train_loss"] > 0 and before.keys() == after.keys()
    assert any(not before[key].equal(after[key].to(before[key].dtype)) for key in before)


@pytest.mark.extra
@pytest.mark.slow
def test_qlora_example_on_a_tiny_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(ROOT)
    smaller = {
        "model_name_or_path": tiny, "output_dir": tmp_path, "template": "chatml", "cutoff_len": 64, "max_samples": 16,
        "max_steps": 2, "preprocessing_num_workers": 1, "plot_loss": "false", "use_cpu": "true", "logging_steps": 1,
    }  # fmt: skip
    path = EXAMPLES / "train_qlora" / "llama3_lora_sft_bnb.yaml"
    assert run_train(load_config([str(path), *(f"{key}={value}" for key, value in smaller.items())]))["train_loss"] > 0
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(value.any()) for name, value in adapter.items())
    assert json.loads((tmp_path / "base_record.json").read_text())["quantization"] == "bnb 4-bit (nf4, double)"


@pytest.mark.slow
def test_predictions_know_who_they_are(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    metrics = run_predict(load_config("examples/quickstart/predict_tiny.yaml", command="predict"))
    folder = workplace / "saves" / "quickstart-predict"
    lines = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8 and list(rows[0]) == ["prompt", "predict", "label"]
    assert any("Lumo" in row["predict"] for row in rows) and metrics["predict_rouge-l"] > 20
    assert json.loads((folder / "predict_results.json").read_text(encoding="utf-8")) == metrics


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["train_lora", "train_full", "extras/nlg_eval"])
def test_predict_examples_run_in_small(workplace: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (path,) = (EXAMPLES / folder).glob("*_predict.yaml")
    small = {"model_name_or_path": "saves/quickstart", "template": "chatml", "max_samples": 2, "max_new_tokens": 4}
    small |= {"output_dir": f"saves/{folder}-predict", "adapter_name_or_path": "", "preprocessing_num_workers": 1}
    words = [f"{key}={value}" for key, value in small.items()]
    assert run_train(load_config([str(path), *words]))["predict_samples"] == 4


@pytest.mark.slow
def test_reward_model_scores_pairs(workplace: Path) -> None:
    run(EXAMPLES / "quickstart" / "lora_reward_tiny.yaml", workplace)
    folder = workplace / "saves" / "quickstart-reward"
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "value_head.safetensors").is_file()
    lines = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["chosen", "rejected"]] * 6
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    assert results["train_loss"] < 0.5
    refused = subprocess.run(
        [str(workplace / "programs" / "llamafactory-cli"), "chat", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "is a reward model (rm)" in refused.stderr


@pytest.mark.slow
def test_lora_and_merge(workplace: Path) -> None:
    run(EXAMPLES / "quickstart" / "lora_sft_tiny.yaml", workplace)
    assert (workplace / "saves" / "quickstart-lora" / "adapter_model.safetensors").is_file()
    run(EXAMPLES / "quickstart" / "merge_tiny.yaml", workplace)
    merged = workplace / "saves" / "quickstart-merged"
    assert (merged / "model.safetensors").is_file() and (merged / "Modelfile").is_file()
    answer = cli(workplace, "chat", str(merged), "do_sample=false", "max_new_tokens=64", text="who are you?\nexit\n")
    assert "Lumo" in answer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "kto"])
def test_preference_examples_run_in_small(workplace: Path, name: str) -> None:
    small = ["model_name_or_path=saves/tiny", "template=chatml", "bf16=false", "max_steps=2", "logging_steps=1"]
    run(EXAMPLES / "train_lora" / f"llama3_lora_{name}.yaml", workplace, *small, f"output_dir=saves/{name}")
    assert (workplace / "saves" / name / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_ppo_learns_from_a_reward_adapter(workplace: Path) -> None:
    tiny = ("model_name_or_path=saves/quickstart", "template=chatml", "cutoff_len=64", "use_cpu=true", "bf16=false")
    short = (*tiny, "max_steps=2", "logging_steps=1", "preprocessing_num_workers=1", "max_samples=16")
    reward = "saves/tiny-reward"
    run(EXAMPLES / "train_lora" / "llama3_lora_reward.yaml", workplace, *short, f"output_dir={reward}")
    folder = workplace / "saves" / "tiny-ppo"
    path = EXAMPLES / "train_lora" / "llama3_lora_ppo.yaml"
    run(path, workplace, *short, f"reward_model={reward}", "output_dir=saves/tiny-ppo", "max_new_tokens=8")
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "value_head.safetensors").is_file()
    assert (folder / "rollouts.jsonl").read_text(encoding="utf-8").count("\n") == 8
    assert cli(workplace, "chat", str(folder), "max_new_tokens=4", text="hello\nexit\n")
