"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from tests.training.models import examples, tiny_model, with_lora
from tests.training.runs import UNEVEN, logged, make_trainer, run_config, same, weights
from transformers import PreTrainedModel, TrainerCallback

from llamafactory.errors import CheckpointError
from llamafactory.training import checkpointing

BASE: dict[str, object] = {
    "max_steps": 12, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "cosine", "warmup_steps": 2,
}  # fmt: skip


class Crash(Exception):
    """The interruption."""


class CrashAt(TrainerCallback):
    """Raises at the end of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise Crash


def dropout_model(family: str = "llama") -> PreTrainedModel:
    return tiny_model(family, attention_dropout=0.1)


def lora_model() -> PreTrainedModel:
    return with_lora(dropout_model(), lora_dropout=0.1, modules_to_save=["lm_head"])


def packed_rows() -> list[dict[str, object]]:
    rows = examples(UNEVEN)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [
        {
            "input_ids": left["input_ids"] + right["input_ids"],
            "labels": left["labels"] + right["labels"],
            "lengths": [len(left["input_ids"]), len(right["input_ids"])],
        }
        for left, right in pairs
    ]


def stream() -> Iterator[dict[str, list[int]]]:
    yield from examples(UNEVEN)


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "lora": {"model": lora_model},
    "two workers": {"dataloader_num_workers": 2, "model": lora_model},
    "packing": {"packing": True, "train": packed_rows},
    "adafactor": {"optim": "adafactor"},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "sums between log lines": {"logging_steps": 3, "save_steps": 4, "compute_accuracy": True},
    "neftune": {"neftune_noise_alpha": 5.0},
    "weights only in bf16": {"pure_bf16": True, "optim": "adamw_torch", "model": lambda: dropout_model().bfloat16()},
    "bf16 autocast": {"bf16": True},
    "tied weights": {"model": lambda: tiny_model(tie_word_embeddings=True)},
    "weights saved under other names": {"model": lambda: dropout_model("mixtral")},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2, "evals": True,
                "metric_for_best_model": "loss"},
    "stream": {"train": lambda: IterableDataset.from_generator(stream).shuffle(seed=3, buffer_size=6)},
    "asft": {"use_asft_loss": True, "model": lora_model},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_resuming_is_exact(tmp_path: Path, name: str) -> None:
    case = dict(CASES[name])
    build_model, rows = case.pop("model", dropout_model), case.pop("train", lambda: None)
    evals = {"v": examples(UNEVEN[:6])} if case.pop("evals", False) else None

    def trainer(folder: str, *callbacks: TrainerCallback) -> Any:
        torch.manual_seed(5)
        config = run_config(tmp_path / folder, **BASE | case)
        return make_trainer(config, build_model(), train=rows(), evals=evals, callbacks=callbacks)

    straight = trainer("straight")
    straight.train()

    with pytest.raises(Crash):
        trainer("halted", CrashAt(7)).train()
    resumed = trainer("halted")
    output = resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    assert logged(resumed) == logged(straight)
    assert same(weights(resumed.model), weights(straight.model))
    assert output.training_loss == pytest.approx(sum(loss for _, loss, _ in logged(straight)) / len(logged(straight)))
    log = (tmp_path / "halted" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [entry["current_steps"] for entry in map(json.loads, log) if "loss" in entry]
    assert steps == [step for step, *_ in logged(straight)]


def test_the_end_of_an_epoch_is_a_good_place_to_resume(tmp_path: Path) -> None:
    options = BASE | {"save_strategy": "epoch", "max_steps": 25}
    straight = make_trainer(run_config(tmp_path / "straight", **options))
    straight.train()
    with pytest.raises(Crash):
        make_trainer(run_config(tmp_path / "halted", **options), callbacks=[CrashAt(13)]).train()
    resumed = make_trainer(run_config(tmp_path / "halted", **options))
    resumed.train(resume_from_checkpoint=tmp_path / "halted" / "checkpoint-10")
    assert same(weights(resumed.model), weights(straight.model))
    assert logged(resumed) == logged(straight)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    make_trainer(run_config(folder, **BASE | {"max_steps": 8})).train()
    return folder


def resume(folder: Path, **options: object) -> None:
    make_trainer(run_config(folder, **BASE | options)).train(resume_from_checkpoint=True)


def test_the_newest_complete_checkpoint_is_taken(finished: Path) -> None:
    assert checkpointing.find_resumable(finished) == (finished / "checkpoint-8", [])
    with (finished / "checkpoint-8" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    (finished / "checkpoint-12").mkdir()
    found, skipped = checkpointing.find_resumable(finished)
    assert found == finished / "checkpoint-4"
    assert [path.name for path, _ in skipped] == ["checkpoint-12", "checkpoint-8"]
    assert "has no manifest.json: it was not saved completely" in skipped[0][1]
    assert "model.safetensors has 1000 bytes instead of" in skipped[1][1]


@pytest.mark.parametrize(
    "name", ["optimizer.safetensors", "scheduler.json", "rng_state_0.safetensors", "trainer_state.json"]
)
def test_nothing_may_be_missing(finished: Path, name: str) -> None:
    (finished / "checkpoint-8" / name).unlink()
    (finished / "checkpoint-4" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing") as error:
        resume(finished)
    assert "remove resume_from_checkpoint" in str(error.value)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpointing.check_resumable(finished / "checkpoint-8", weights_only_allowed=False)


def test_a_changed_file_is_noticed(finished: Path) -> None:
    path = finished / "checkpoint-8" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert (
        checkpointing.find_damage(finished / "checkpoint-8") == "optimizer.safetensors has changed since it was saved"
    )


def test_a_checkpoint_of_another_program_is_not_loaded(finished: Path) -> None:
    foreign = finished / "checkpoint-9"
    foreign.mkdir()
    (foreign / "optimizer.pt").write_bytes(b"")
    reason = checkpointing.why_not_resumable(foreign)
    assert reason is not None and "another program, whose pickled state is not loaded" in reason


def test_a_finished_run_says_so(finished: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"the run is finished: .* at step 8 and the run ends at step 8.*raise num_train_epochs",
    ):
        resume(finished, max_steps=8)


def test_a_finished_run_can_be_extended(finished: Path) -> None:
    trainer = make_trainer(run_config(finished, **BASE | {"max_steps": 10}))
    trainer.train(resume_from_checkpoint=True)
    assert [step for step, *_ in logged(trainer)] == list(range(1, 11))


def test_weights_only_checkpoints_do_not_resume_by_accident(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    make_trainer(run_config(folder, **BASE | {"save_only_model": True, "max_steps": 4})).train()
    checkpoint = folder / "checkpoint-4"
    assert not (checkpoint / "optimizer.safetensors").exists()
    found, skipped = checkpointing.find_resumable(folder)
    assert found is None and "weights only" in skipped[0][1]
    with pytest.raises(
        CheckpointError, match=r"holds weights only, so optimizer.*save_only_model: true to accept that"
    ):
        make_trainer(run_config(folder, **BASE)).train(resume_from_checkpoint=checkpoint)
    trainer = make_trainer(run_config(folder, **BASE | {"save_only_model": True, "max_steps": 6}))
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 6


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint-3' does not exist"):
        make_trainer(run_config(tmp_path)).train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    with pytest.raises(CheckpointError, match=r"has no complete checkpoint \(it holds none\)"):
        make_trainer(run_config(tmp_path)).train(resume_from_checkpoint=True)


def test_another_adapter_does_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_trainer(run_config(folder, **BASE | {"max_steps": 4}), with_lora(tiny_model())).train()
    wider = make_trainer(run_config(folder, **BASE), with_lora(tiny_model(), r=4))
    with pytest.raises(CheckpointError, match="the saved adapter does not fit this run"):
        wider.train(resume_from_checkpoint=True)


def test_no_pickle_is_written(finished: Path) -> None:
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}


def test_what_changed_since_the_checkpoint_is_reported(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(finished, max_steps=9, gradient_accumulation_steps=2)
    assert "global_batch_size was 2 when the checkpoint was made and is 4 now" in caplog.text


def test_leftovers_of_an_interrupted_save_are_cleaned(finished: Path) -> None:
    (finished / ".staging-checkpoint-12").mkdir()
    shutil.move(finished / "checkpoint-8", finished / ".replaced-checkpoint-8")
    checkpointing.clean(finished)
    assert checkpointing.find_resumable(finished)[0] == finished / "checkpoint-8"
    assert not list(finished.glob(".*"))
