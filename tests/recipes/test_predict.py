"""The predict command and do_predict on real files: the same text as chat, the same prompts as training, resumption."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from tests.recipes.artefacts_for_tests import write_run

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.data.pipeline import build_datasets
from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.loading import load_renderer
from llamafactory.recipes.predict import run_predict
from llamafactory.recipes.train import run_train

ROWS = [
    {"instruction": f"Say {'very ' * (n % 4)}{n}.", "output": f"The number is {n}.", "system": "S"} for n in range(7)
]
PAIRS = [{"instruction": f"Say {n}.", "chosen": "yes", "rejected": "no"} for n in range(4)]
REGISTRY = {
    "numbers": {"file_name": "numbers.json", "columns": {"prompt": "instruction", "system": "system"}},
    "more": {"file_name": "more.json"},
    "pairs": {"file_name": "pairs.json", "ranking": True},
}
PART = "generated_predictions.part.jsonl"
Keys = dict[str, object]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for name, rows in (("numbers", ROWS), ("more", ROWS[:2]), ("pairs", PAIRS)):
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(REGISTRY), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", model_dir, template="chatml")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path_factory.getbasetemp() / "predict_cache"))


@pytest.fixture
def keys(run: Path, data_dir: Path, tmp_path: Path) -> Keys:
    return {
        "model_name_or_path": str(run), "eval_dataset": "numbers", "dataset_dir": str(data_dir),
        "output_dir": str(tmp_path / "out"), "do_sample": False, "max_new_tokens": 6,
    }  # fmt: skip


def rows_of(keys: Keys) -> list[dict[str, str]]:
    text = (Path(str(keys["output_dir"])) / "generated_predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_text_is_that_of_chat_and_labels_are_what_training_learns(keys: Keys, run: Path) -> None:
    metrics = run_predict(keys)
    rows = rows_of(keys)
    with ChatModel({"model_name_or_path": str(run), "do_sample": False, "max_new_tokens": 6}) as model:
        told = [model.chat([{"role": "user", "content": str(row["instruction"])}], system="S").text for row in ROWS]
    assert [row["predict"] for row in rows] == told and len(set(told)) > 1
    config = load_config(
        {**keys, "do_eval": True, "template": "chatml", "model_name_or_path": keys["model_name_or_path"]}
    )
    bundle, renderer = load_renderer(config)
    encoded = build_datasets(config, renderer, for_training=False).evals["validation"]
    for row, example in zip(rows, encoded, strict=True):
        start = next(at for at, label in enumerate(example["labels"]) if label != -100)
        assert row["prompt"] == bundle.tokenizer.decode(example["input_ids"][:start])
        learnt = [label for label in example["labels"] if label != -100]
        assert row["label"] == bundle.tokenizer.decode(learnt, skip_special_tokens=True)
    assert [row["label"] for row in rows] == [row["output"] for row in ROWS]
    assert set(rows[0]) == {"prompt", "predict", "label"}
    names = {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match", "runtime", "samples", "samples_per_second"}
    assert set(metrics) == {f"predict_{name}" for name in (*names, "cut_short", "failed")}
    folder = Path(str(keys["output_dir"]))
    assert json.loads((folder / "predict_results.json").read_text("utf-8")) == metrics
    assert json.loads((folder / "all_results.json").read_text("utf-8")) == metrics
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert [line["current_steps"] for line in log] == [5, 7] and log[-1]["percentage"] == 100


def test_an_unfinished_run_goes_on_and_ends_like_an_uninterrupted_one(keys: Keys, tmp_path: Path) -> None:
    sampled = {**keys, "do_sample": True, "temperature": 2.0, "top_p": 1.0, "on_bad_example": "skip"}
    run_predict(sampled)
    whole = rows_of(sampled)
    again = {**sampled, "output_dir": str(tmp_path / "again"), "max_new_tokens": 6}
    stopped = {**again, "per_device_eval_batch_size": 1}
    _stop_after(stopped, answers=3)
    with (Path(str(again["output_dir"])) / PART).open("ab") as file:
        file.write(b'{"index": 6, "te')
    metrics = run_predict(again)
    assert rows_of(again) == whole and len({row["predict"] for row in whole}) > 1
    assert metrics["predict_samples"] == 7
    assert not (Path(str(again["output_dir"])) / PART).exists()
    with pytest.raises(ConfigError, match="already holds finished predictions"):
        run_predict(again)


def _stop_after(keys: Keys, *, answers: int) -> None:
    """Run until so many answers are written, as if the machine then stopped."""
    from llamafactory.inference.prediction_file import PredictionFile

    add, seen = PredictionFile.add, []

    def stop(self: PredictionFile, answer: object) -> None:
        add(self, answer)  # type: ignore[arg-type]
        seen.append(answer)
        if len(seen) == answers:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PredictionFile, "add", stop)
        run_predict(keys)
    part = Path(str(keys["output_dir"])) / PART
    assert len(part.read_text("utf-8").splitlines()) == 1 + answers


def test_weights_that_changed_are_another_run(keys: Keys, run: Path, tmp_path: Path) -> None:
    _stop_after(keys, answers=2)
    os.utime(run / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"unfinished predictions of another run \(weights: "):
        run_predict(keys)
    with pytest.raises(ConfigError, match=r"another run \(max_new_tokens: 6 -> 7; weights: "):
        run_predict({**keys, "max_new_tokens": 7})


def test_several_sets_are_measured_on_their_own_when_asked(keys: Keys) -> None:
    metrics = run_predict({**keys, "eval_dataset": "numbers,more", "eval_on_each_dataset": True, "max_samples": 2})
    assert len(rows_of(keys)) == 4
    assert {"predict_rouge-l", "predict_numbers_rouge-l", "predict_more_rouge-l"} <= set(metrics)


def test_a_prompt_that_does_not_fit_names_its_row_or_is_noted(keys: Keys, data_dir: Path) -> None:
    long = {"instruction": "word " * 600, "output": "x"}
    (data_dir / "more.json").write_text(json.dumps([ROWS[0], long]), encoding="utf-8")
    with pytest.raises(ModelError, match=r"more\.json:2: The prompt has \d+ tokens"):
        run_predict({**keys, "eval_dataset": "more"})
    skipping = {**keys, "eval_dataset": "more", "on_bad_example": "skip"}
    metrics = run_predict(skipping)
    assert metrics["predict_failed"] == 1 and rows_of(skipping)[1]["predict"] == ""
    (data_dir / "more.json").write_text(json.dumps(ROWS[:2]), encoding="utf-8")


def test_a_reward_model_answers_nothing(keys: Keys) -> None:
    with pytest.raises(ConfigError, match=r"stage: .* is a reward model .*`llamafactory-cli train`"):
        run_predict({**keys, "stage": "rm"})


def test_the_command_says_what_it_lacks(keys: Keys) -> None:
    for key, fix in (("eval_dataset", "no data to make predictions for"), ("output_dir", "no folder to write to")):
        with pytest.raises(ConfigError, match=f"{key}.*{fix}"):
            load_config({name: value for name, value in keys.items() if name != key}, command="predict")


@pytest.fixture
def training(keys: Keys, model_dir: Path) -> Keys:
    return {
        **keys, "model_name_or_path": str(model_dir), "template": "chatml", "do_train": True, "dataset": "numbers",
        "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05, "save_strategy": "no",
        "report_to": "none", "max_new_tokens": 4,
    }  # fmt: skip


def test_training_predicts_with_the_weights_it_ends_with(training: Keys) -> None:
    keys = {**training, "do_predict": True, "predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 1}
    metrics = run_train(keys)
    rows = rows_of(keys)
    folder = str(keys["output_dir"])
    with ChatModel({"model_name_or_path": folder, "do_sample": False, "max_new_tokens": 4}) as model:
        told = [model.chat([{"role": "user", "content": str(row["instruction"])}], system="S").text for row in ROWS]
    assert [row["predict"] for row in rows] == told
    state = json.loads((Path(folder) / "trainer_state.json").read_text("utf-8"))
    evaluated = [entry for entry in state["log_history"] if "eval_rouge-l" in entry]
    assert [entry["step"] for entry in evaluated] == [1, 2] and "eval_bleu-4" in evaluated[0]
    assert "train_loss" in metrics and metrics["predict_samples"] == 7


def test_the_held_back_part_and_a_preference_stage_predict_too(training: Keys) -> None:
    stage = {"stage": "dpo", "dataset": "pairs", "eval_dataset": "", "val_size": 2, "do_predict": True}
    metrics = run_train({**training, **stage, "max_steps": 1})
    assert metrics["predict_samples"] == 2
    assert [row["label"] for row in rows_of(training)] == ["yes", "yes"]


def test_predicting_alone_needs_no_trainer(training: Keys) -> None:
    alone = {**training, "do_train": False, "do_predict": True, "predict_with_generate": True, "dataset": ""}
    assert run_train(alone)["predict_samples"] == 7
    assert {path.name for path in Path(str(alone["output_dir"])).iterdir()} == {
        "generated_predictions.jsonl", "predict_results.json", "all_results.json", "trainer_log.jsonl",
    }  # fmt: skip


def test_a_killed_process_is_gone_on_with(keys: Keys, tmp_path: Path) -> None:
    keys = {**keys, "max_new_tokens": 60, "per_device_eval_batch_size": 1}
    process = multiprocessing.get_context("fork").Process(target=run_predict, args=(keys,))
    process.start()
    part = Path(str(keys["output_dir"])) / PART
    while not part.is_file() or part.read_bytes().count(b"\n") < 3:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert part.is_file() and not part.with_name("generated_predictions.jsonl").exists()
    run_predict(keys)
    gone_on = rows_of(keys)
    fresh = {**keys, "output_dir": str(tmp_path / "fresh")}
    run_predict(fresh)
    assert gone_on == rows_of(fresh)
