"""Every stage on a quantized base by the training command: what moves, how it goes on, what the folder alone gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.training.reward_server import scores, serving

from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.scoring import load_reward_model
from llamafactory.models.load import load_model
from llamafactory.models.quantization import quantization_of
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.recipes.export import run_export
from llamafactory.recipes.train import run_train
from llamafactory.rendering.records import Conversation, Message

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.extra

ROWS = [
    {
        "instruction": f"Say {index}.", "output": f"The number is {index}." if index % 2 else "No.",
        "chosen": f"The number is {index}.", "rejected": "No." + " Never." * (index % 4), "ok": bool(index % 2),
    }
    for index in range(12)
]  # fmt: skip
REGISTRY = {
    "rows": {"file_name": "rows.json"},
    "pairs": {"file_name": "rows.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}},
    "judged": {"file_name": "rows.json", "columns": {"kto_tag": "ok"}},
}
DATA = {"pt": "rows", "sft": "rows", "ppo": "rows", "kto": "judged"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(REGISTRY), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options(model_dir: Path, data_dir: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(model_dir), "quantization_bit": 4, "dataset_dir": str(data_dir), "template": "chatml",
        "do_train": True, "cutoff_len": 64, "per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "use_cpu": True, "output_dir": str(tmp_path / "run"),
        "max_new_tokens": 4, "ppo_epochs": 2, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip


def for_stage(options: dict[str, object], stage: str) -> dict[str, object]:
    kept = options if stage == "ppo" else {key: value for key, value in options.items() if key != "ppo_epochs"}
    return kept | {"stage": stage, "dataset": DATA.get(stage, "pairs")}


def stays_and_goes_on(options: dict[str, object]) -> None:
    """Train with checkpoints, lose the second half, go on: the same adapter to the bit."""
    folder = Path(str(options["output_dir"]))
    run_train(options | {"save_steps": 1})
    straight = load_file(folder / "adapter_model.safetensors")
    shutil.rmtree(folder / "checkpoint-2")
    (folder / "adapter_model.safetensors").unlink()
    run_train(options | {"save_steps": 1})
    resumed = load_file(folder / "adapter_model.safetensors")
    assert straight.keys() == resumed.keys() and all(straight[key].equal(resumed[key]) for key in straight)
    assert any("lora_B" in key and bool(value.any()) for key, value in resumed.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pt", "rm", "dpo", "orpo", "simpo", "kto"])
def test_every_stage_goes_on_exactly(options: dict[str, object], stage: str) -> None:
    stays_and_goes_on(for_stage(options, stage))


def test_sft_goes_on_exactly_and_its_folder_alone_answers(
    options: dict[str, object], model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = for_stage(options, "sft") | {"val_size": 2, "do_eval": True, "eval_strategy": "steps", "eval_steps": 1}
    stays_and_goes_on(asked)
    folder = Path(str(options["output_dir"]))
    assert "base weights in training | `bnb 4-bit (nf4, double)`" in (folder / "README.md").read_text()
    config = load_config(folder, command="chat")
    assert config.quantization.quantization_bit == 4
    assert load_config([str(folder), "quantization_bit=null"], command="chat").quantization.quantization_bit is None
    assert quantization_of(load_model(config, load_tokenizer(config), trainable=False).model) is not None
    chat = ChatModel({"model_name_or_path": str(folder)})
    assert chat.chat([{"role": "user", "content": "Say 3."}], max_new_tokens=3).completion_tokens <= 3
    caplog.clear()
    merged = run_export({"model_name_or_path": str(folder), "export_dir": str(tmp_path / "merged")})
    assert "the adapter was trained on a base held as bnb 4-bit (nf4, double), now it is not quantized" in caplog.text
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())


def test_a_quantized_base_is_evaluated_without_an_adapter(options: dict[str, object]) -> None:
    plain = {key: value for key, value in for_stage(options, "sft").items() if key != "max_steps"}
    metrics = run_train(plain | {"do_train": False, "do_eval": True, "eval_dataset": "rows", "quantization_bit": 8})
    assert 0 < metrics["eval_loss"] < 20


@pytest.mark.slow
def test_a_quantized_reference_and_reward_models(options: dict[str, object], model_dir: Path, tmp_path: Path) -> None:
    dpo = {"ref_model": str(model_dir), "ref_model_quantization_bit": 8, "output_dir": str(tmp_path / "dpo")}
    metrics = run_train(for_stage(options, "dpo") | dpo)
    reward = tmp_path / "reward"
    run_train(for_stage(options, "rm") | {"output_dir": str(reward)})
    score = load_reward_model(load_config(reward, command="chat")).score
    assert len(score([Conversation((Message("user", "Hi"), Message("assistant", "Yes.")))])) == 1
    ppo = for_stage(options, "ppo") | {"reward_model_type": "full", "reward_model": str(model_dir)}
    ppo |= {"reward_model_adapters": str(reward), "reward_model_quantization_bit": 8}
    metrics = run_train(ppo | {"output_dir": str(tmp_path / "ppo_full")})
    assert metrics["train_loss"] == metrics["train_loss"]
    lora = for_stage(options, "ppo") | {"reward_model_type": "lora", "reward_model": str(reward)}
    run_train(lora | {"output_dir": str(tmp_path / "ppo_lora")})


@pytest.mark.slow
def test_ppo_goes_on_exactly(options: dict[str, object]) -> None:
    with serving(scores(lambda text: len(text) / 100)) as url:
        stays_and_goes_on(for_stage(options, "ppo") | {"reward_model_type": "api", "reward_model": url})


def test_a_quantized_model_is_exported_as_it_is(options: dict[str, object], model_dir: Path, tmp_path: Path) -> None:
    source = {"model_name_or_path": str(model_dir), "template": "chatml", "quantization_bit": 4}
    folder = run_export(source | {"export_dir": str(tmp_path / "small")})
    config = load_config({"model_name_or_path": str(folder), "template": "chatml"}, command="chat")
    found = quantization_of(load_model(config, load_tokenizer(config), trainable=False).model)
    assert found is not None and found.stored
    with pytest.raises(ConfigError, match=r"cannot be merged into quantized weights; remove quantization_bit"):
        run_export(source | {"adapter_name_or_path": "a", "export_dir": str(tmp_path / "bad")})
