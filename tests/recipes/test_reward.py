"""Reward models from rows to scores: training, resuming, predictions, scoring, export, and what cannot be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.errors import CheckpointError, ConfigError, DataError, ModelError
from llamafactory.inference.scoring import RewardModel, load_reward_model
from llamafactory.models.load import load_model
from llamafactory.models.safetensors_file import folder_shapes
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.recipes.export import run_export
from llamafactory.recipes.train import run_train
from llamafactory.rendering.records import Conversation, Message

GOOD, BAD = "Here you are, with pleasure.", "No."
PLACES = ("Paris", "Rome", "Oslo", "Bern", "Kyoto", "Lima", "Cairo", "Quito")


def row(question: str, chosen: str, rejected: str) -> dict[str, object]:
    return {
        "conversations": [{"from": "human", "value": question}],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def toy_rows(count: int) -> list[dict[str, object]]:
    """Polite answers are better than curt ones, whatever the place."""
    return [
        row(f"Tell me {index} facts about {PLACES[index % 8]}.", f"{PLACES[index % 8]}? {GOOD}", f"{index}? {BAD}")
        for index in range(count)
    ]


@pytest.fixture
def options(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": columns}
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pairs.json").write_text(json.dumps(toy_rows(24)), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}), encoding="utf-8")
    return {
        "model_name_or_path": str(model_dir), "dataset_dir": str(folder), "dataset": "pairs", "template": "chatml",
        "stage": "rm", "finetuning_type": "lora", "do_train": True, "cutoff_len": 96, "per_device_train_batch_size": 4,
        "max_steps": 2, "logging_steps": 1, "learning_rate": 0.01, "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


def conversation(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def reward_model(folder: Path, **options: object) -> RewardModel:
    return load_reward_model(load_config({"model_name_or_path": str(folder), **options}, command="chat"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def predictions(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def scored_as_predicted(folder: Path) -> bool:
    rows = toy_rows(24)
    model = reward_model(folder)
    for side in ("chosen", "rejected"):
        talks = [conversation(row["conversations"][0]["value"], row[side]["value"]) for row in rows]  # type: ignore[index]
        if model.score(talks) != pytest.approx([pair[side] for pair in predictions(folder)], abs=1e-5):
            return False
    return True


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_a_run_resumes_to_the_same_bits_and_its_folder_scores_alike(options, tmp_path: Path, method: str) -> None:
    common = options | {"finetuning_type": method, "save_steps": 1, "eval_dataset": "pairs", "do_predict": True}
    common |= {"lr_scheduler_type": "constant", "gradient_accumulation_steps": 2, "lora_dropout": 0.1}
    straight, half = tmp_path / "straight", tmp_path / "half"
    metrics = run_train(common | {"output_dir": str(straight)})
    run_train(common | {"output_dir": str(half), "max_steps": 1, "do_predict": False})
    assert set(folder_shapes(half)) >= {"v_head.summary.weight", "v_head.summary.bias"}
    assert (half / "checkpoint-1" / "value_head.safetensors").is_file()
    run_train(common | {"output_dir": str(half)})
    expected, found = weights(straight), weights(half)
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    assert not any("v_head" in name for name in load_file(next(straight.glob("*model.safetensors"))))
    assert metrics["predict_samples"] == 24
    assert scored_as_predicted(straight)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_the_vocabulary_projection_never_runs(options, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = torch.nn.Linear.forward

    def watch(self: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
        calls.append(self.out_features)
        return forward(self, states)

    monkeypatch.setattr(torch.nn.Linear, "forward", watch)
    given = {"finetuning_type": "full", "val_size": 4, "do_eval": True, "do_predict": True, "batch_layout": layout}
    run_train(options | given)
    vocab_size = json.loads((Path(str(options["output_dir"])) / "config.json").read_text())["vocab_size"]
    assert len(calls) > 100
    assert calls.count(vocab_size) == 2  # before the run, a tiny batch is tried in both forms of its layout


def test_a_separable_set_is_learnt_and_the_best_model_kept(options) -> None:
    learn = {
        "max_steps": 24, "val_size": 8, "do_eval": True, "eval_strategy": "steps", "eval_steps": 8, "save_steps": 8,
        "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "do_predict": True, "plot_loss": True,
    }  # fmt: skip
    metrics = run_train(options | learn)
    assert metrics["eval_accuracy"] > 0.95
    assert metrics["eval_rewards/margins"] > 0
    folder = Path(str(options["output_dir"]))
    assert sum(pair["chosen"] > pair["rejected"] for pair in predictions(folder)) / 8 > 0.95
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["accuracy"] for line in lines if "accuracy" in line][-1] == 1.0
    assert (folder / "training_eval_accuracy.png").is_file()
    assert "pipeline_tag" not in (folder / "README.md").read_text(encoding="utf-8")


def test_evaluating_and_predicting_alone_need_a_trained_head(options, tmp_path: Path) -> None:
    run_train(options)
    later = options | {"do_train": False, "do_eval": True, "do_predict": True, "eval_dataset": "pairs"}
    later |= {"adapter_name_or_path": str(options["output_dir"]), "output_dir": str(tmp_path / "eval")}
    del later["dataset"]
    metrics = run_train(later)
    assert metrics["predict_accuracy"] == pytest.approx(metrics["eval_accuracy"])
    assert metrics["predict_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)
    with pytest.raises(ModelError, match=r"has no value_head\.safetensors.*not a reward model"):
        run_train(later | {"adapter_name_or_path": None, "output_dir": str(tmp_path / "other")})


def test_a_resumed_run_without_its_head_is_told(options) -> None:
    run_train(options | {"save_steps": 1})
    folder = Path(str(options["output_dir"]))
    (folder / "checkpoint-2" / "value_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-2.*value_head\.safetensors"):
        run_train(options | {"save_steps": 1, "max_steps": 4, "resume_from_checkpoint": str(folder / "checkpoint-2")})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_keeps_the_head_and_scores_the_same(options, tmp_path: Path, method: str) -> None:
    run_train(options | {"finetuning_type": method})
    folder, target = Path(str(options["output_dir"])), tmp_path / "exported"
    talks = [conversation("Tell me about Rome.", GOOD), conversation("Tell me about Rome.", BAD)]
    expected = reward_model(folder).score(talks)
    run_export({"model_name_or_path": str(folder), "export_dir": str(target), "export_device": "cpu"})
    assert (target / "value_head.safetensors").is_file()
    assert reward_model(target).score(talks) == pytest.approx(expected, abs=1e-4)
    for place in (folder, target):
        with pytest.raises(ConfigError, match="is a reward model"):
            ChatModel({"model_name_or_path": str(place)})
    (target / "value_head.safetensors").unlink()
    with pytest.raises(ModelError, match="not a reward model"):
        reward_model(target)


def test_scores_do_not_depend_on_the_batch(options) -> None:
    run_train(options)
    model = reward_model(Path(str(options["output_dir"])))
    talks = [conversation("Tell me about Rome.", GOOD * count) for count in (3, 1, 2)]
    alone = [model.score([talk])[0] for talk in talks]
    assert model.score(talks) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 3
    with pytest.raises(DataError, match="the last message must be the assistant's"):
        model.score([Conversation((Message("user", "Hello?"),))])
    with pytest.raises(DataError, match="no tokens"):
        model.score_ids([[]])
    with pytest.raises(ModelError, match="700 tokens and the reward model has positions for 512"):
        model.score_ids([[5] * 700])


def test_a_policy_takes_up_the_head_of_its_folder(options) -> None:
    run_train(options)
    folder = Path(str(options["output_dir"]))
    keys = {name: options[name] for name in ("model_name_or_path", "template", "dataset_dir", "dataset", "use_cpu")}
    keys |= {"do_train": True, "output_dir": "unused", "adapter_name_or_path": str(folder)}
    config = load_config(keys, command="train")
    loaded = load_model(config, load_tokenizer(config), trainable=True, head="both")
    expected = load_file(folder / "value_head.safetensors")["v_head.summary.weight"]
    assert loaded.model.v_head.summary.weight.equal(expected)


Change = Callable[[dict[str, object]], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("rejected"), "rejected"),
        (lambda row: row.update(rejected=row["chosen"]), "expected an answer that differs from the chosen one"),
    ],
    ids=["without rejected", "identical"],
)
def test_a_bad_row_is_named(options, change: Change, message: str) -> None:
    rows = toy_rows(6)
    change(rows[3])
    (Path(str(options["dataset_dir"])) / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError, match=rf"pairs\.json:4.*({message})"):
        run_train(options)


def test_predictions_need_evaluation_data_before_training_starts(options) -> None:
    with pytest.raises(ConfigError, match=r"do_predict: true with eval_dataset.*there is no evaluation data"):
        run_train(options | {"do_predict": True})
