"""Stage ppo by the training command: every kind of reward model, what is left behind, how it goes on and fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.training.reward_server import scores, serving
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory.errors import ConfigError, LlamaFactoryError, ModelError
from llamafactory.inference.chat_model import ChatModel
from llamafactory.models.start import START_FILE
from llamafactory.models.value_head import attach_value_head, head_state, save_value_head
from llamafactory.recipes.train import run_train

PROMPTS = [{"instruction": f"Say the number {index}.", "input": "", "output": ""} for index in range(8)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options(model_dir: Path, tmp_path: Path) -> dict[str, object]:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"prompts": {"file_name": "prompts.json"}}), encoding="utf-8")
    return {
        "model_name_or_path": str(model_dir), "dataset_dir": str(folder), "dataset": "prompts", "template": "chatml",
        "stage": "ppo", "do_train": True, "use_cpu": True, "per_device_train_batch_size": 4, "max_steps": 2,
        "ppo_epochs": 2, "max_new_tokens": 5, "top_p": 1.0, "top_k": 0, "learning_rate": 0.01, "logging_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def reward_adapter(model_dir: Path, folder: Path) -> Path:
    """A random reward adapter with its value head."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.save_pretrained(folder)
    save_value_head(head_state(attach_value_head(model, trainable=False)), folder)
    return folder


def reward_model(model_dir: Path, folder: Path) -> Path:
    """A copy of the tiny model with a random value head."""
    shutil.copytree(model_dir, folder)
    torch.manual_seed(2)
    head = attach_value_head(AutoModelForCausalLM.from_pretrained(model_dir), trainable=False)
    save_value_head(head_state(head), folder)
    return folder


def length_of_text(text: str) -> float:
    assert text.startswith("<|im_start|>user\nSay the number")
    return len(text) / 100


def log_lines(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("finetuning_type", ["full", "freeze", "lora"])
def test_a_run_with_a_reward_server(options: dict[str, object], tmp_path: Path, finetuning_type: str) -> None:
    extra = {"finetuning_type": finetuning_type, "freeze_trainable_layers": 1, "reward_model_type": "api"}
    extra |= {"plot_loss": True, "val_size": 2, "do_eval": True, "save_steps": 1, "lr_scheduler_type": "constant"}
    with serving(scores(length_of_text)) as url:
        metrics = run_train(options | extra | {"reward_model": url})
        shorter = options | extra | {"reward_model": url, "output_dir": str(tmp_path / "half")}
        run_train(shorter | {"max_steps": 1, "do_eval": False})
        run_train(shorter | {"do_eval": False})
    folder = Path(str(options["output_dir"]))
    weights = "adapter_model.safetensors" if finetuning_type == "lora" else "model.safetensors"
    present = {path.name for path in folder.iterdir()}
    assert {weights, "value_head.safetensors", "rollouts.jsonl", "training_reward.png"} <= present
    for name in (weights, "value_head.safetensors"):
        straight, resumed = load_file(folder / name), load_file(tmp_path / "half" / name)
        assert all(straight[key].equal(resumed[key]) for key in straight)
    assert metrics["eval_reward"] > 0 and abs(metrics["eval_kl"]) < 1
    lines = [line for line in log_lines(folder, "trainer_log.jsonl") if "loss" in line]
    assert [line["current_steps"] for line in lines] == [1, 2]
    assert all(line["reward"] > 0 for line in lines)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    names = {"kl", "kl_coef", "policy_loss", "value_loss", "clip_fraction", "entropy", "response_length", "reward"}
    assert names <= history[0].keys()
    samples = log_lines(folder, "rollouts.jsonl")
    assert [sample["step"] for sample in samples] == [0] * 4
    assert set(samples[0]) == {"step", "prompt", "response", "score", "kl"}


def test_the_result_chats(options: dict[str, object]) -> None:
    with serving(scores(length_of_text)) as url:
        run_train(options | {"reward_model_type": "api", "reward_model": url, "max_steps": 1})
    model = ChatModel({"model_name_or_path": options["output_dir"], "max_new_tokens": 3})
    assert model.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("kind", ["full", "full with adapter", "lora"])
def test_reward_models_score(options: dict[str, object], model_dir: Path, tmp_path: Path, kind: str) -> None:
    adapter = reward_adapter(model_dir, tmp_path / "adapter")
    extra: dict[str, object] = {"reward_model_type": kind.split()[0], "save_steps": 1, "lr_scheduler_type": "constant"}
    extra["reward_model"] = str(
        {"full": reward_model(model_dir, tmp_path / "reward"), "lora": adapter}.get(kind, model_dir)
    )
    if kind == "full with adapter":
        extra["reward_model_adapters"] = str(adapter)
    run_train(options | extra)
    half = options | extra | {"output_dir": str(tmp_path / "half")}
    run_train(half | {"max_steps": 1})
    run_train(half)
    folder = Path(str(options["output_dir"]))
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        straight, resumed = load_file(folder / name), load_file(tmp_path / "half" / name)
        assert all(straight[key].equal(resumed[key]) for key in straight)
    assert not (folder / "reward").exists()
    assert len({sample["score"] for sample in log_lines(folder, "rollouts.jsonl")}) == 4


def test_an_adapter_scores_as_the_merged_model_does(
    options: dict[str, object], model_dir: Path, tmp_path: Path
) -> None:
    adapter = reward_adapter(model_dir, tmp_path / "adapter")
    own = {"reward_model_type": "full", "reward_model": str(model_dir), "reward_model_adapters": str(adapter)}
    found = []
    for name, extra in (("lora", {"reward_model_type": "lora", "reward_model": str(adapter)}), ("full", own)):
        run_train(options | extra | {"output_dir": str(tmp_path / name), "max_steps": 1})
        found.append([sample["score"] for sample in log_lines(tmp_path / name, "rollouts.jsonl")])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def fails(options: dict[str, object], kind: type[LlamaFactoryError], text: str) -> None:
    with pytest.raises(kind, match=text):
        run_train(options)
    assert not (Path(str(options["output_dir"])) / "trainer_log.jsonl").exists()


def test_bad_reward_models_are_refused_before_the_policy_is_loaded(
    options: dict[str, object], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafactory.recipes.train.load_model", None)
    adapter = reward_adapter(model_dir, tmp_path / "adapter")
    foreign = reward_model(model_dir, tmp_path / "foreign")
    tokenizer = AutoTokenizer.from_pretrained(foreign)
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(foreign)
    full = options | {"reward_model_type": "full"}
    fails(full | {"reward_model": str(model_dir)}, ModelError, "has no value_head.safetensors.*stage: rm")
    fails(full | {"reward_model": str(tmp_path / "nowhere")}, ModelError, "reward_model: the folder .* does not exist")
    fails(full | {"reward_model": str(adapter)}, ConfigError, "is an adapter.*reward_model_adapters")
    fails(full | {"reward_model": str(foreign)}, ModelError, "another tokenizer than the policy")
    fails(options | {"reward_model": str(model_dir)}, ConfigError, "no adapter_config.json.*reward_model_type: full")
    (adapter / "value_head.safetensors").unlink()
    fails(options | {"reward_model": str(adapter)}, ModelError, "has no value_head.safetensors.*stage: rm")


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({}, "reward_model.*ppo needs rewards"),
        ({"reward_model": "localhost:80", "reward_model_type": "api"}, "start it with http:// or https://"),
        ({"reward_model": "http://localhost:80", "reward_model_type": "full"}, "set reward_model_type to api"),
        ({"reward_model": "x", "num_beams": 4}, "learns from samples.*set num_beams to 1"),
        ({"reward_model": "x", "streaming": True}, "set streaming to false"),
        ({"reward_model": "x", "finetuning_type": "full"}, "set reward_model_type to full or api"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], extra: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run_train(options | extra)


def test_a_reward_adapter_of_another_base_is_refused(
    options: dict[str, object], model_dir: Path, tmp_path: Path
) -> None:
    adapter = reward_adapter(model_dir, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    text = file.read_text(encoding="utf-8").replace('"r": 2', '"r": 3')
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"does not fit the policy's base model"):
        run_train(options | {"reward_model": str(adapter)})


def test_a_reward_adapter_that_changes_its_base_is_refused(
    options: dict[str, object], model_dir: Path, tmp_path: Path
) -> None:
    adapter = reward_adapter(model_dir, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {"init_lora_weights": "pissa"}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trained on a changed base .*pissa_convert: true"):
        run_train(options | {"reward_model": str(adapter)})
    (adapter / START_FILE).touch()
    file.write_text(json.dumps(content | {"init_lora_weights": True}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trained on a changed base"):
        run_train(options | {"reward_model": str(adapter)})
