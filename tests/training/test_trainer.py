"""What the trainer logs, evaluates and refuses."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, IterableDataset
from tests.training.models import VOCAB, examples, padded, tiny_model, with_lora
from tests.training.runs import UNEVEN, logged, make_trainer, run_config, same, weights
from torch import Tensor
from transformers import TrainerCallback

from llamafactory.errors import ConfigError
from llamafactory.objectives import Batch, LossOutput, Scores
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.training.guard import DivergedError, NonFiniteGuard
from llamafactory.training.scoring import TokenScorer
from llamafactory.training.trainer import Trainer

PRIVATE = {
    "_get_num_items_in_batch": ["batch_samples", "device"],
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"],
    "_get_train_sampler": ["train_dataset"],
    "_get_eval_sampler": ["eval_dataset"],
    "_run_epoch": [
        "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_track_num_input_tokens": ["inputs"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_init_training_state": [
        "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
    ],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_determine_best_metric": ["metrics", "trial"],
    "_save_checkpoint": ["model", "trial"],
    "_save": ["output_dir", "state_dict"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_save_scaler": ["output_dir"],
    "_load_scaler": ["checkpoint"],
    "_save_rng_state": ["output_dir"],
    "_load_rng_state": ["checkpoint"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_best_model": [],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    "create_optimizer": ["model"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "log": ["logs", "start_time"],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_the_library_still_has_what_we_override(name: str) -> None:
    parameters = list(inspect.signature(getattr(transformers.Trainer, name)).parameters)
    assert parameters == ["self", *PRIVATE[name]]


def test_every_override_of_the_library_is_pinned() -> None:
    ours = {name for name, value in vars(Trainer).items() if inspect.isfunction(value)}
    overridden = {name for name in ours if hasattr(transformers.Trainer, name)} - {"__init__", "train"}
    assert overridden <= PRIVATE.keys()


def test_there_is_one_subclass_of_the_library_trainer() -> None:
    package = Path(inspect.getfile(Trainer)).parents[1]
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    assert sum("(transformers.Trainer)" in source or "(Trainer)" in source for source in sources) == 1


def nll_of(model: Any, rows: list[dict[str, Any]]) -> tuple[float, int]:
    objective = CrossEntropy()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            batch = padded([row])
            scores = TokenScorer(objective)(model.eval(), batch)
            total += objective(scores, batch).loss_sum.item()
            count += int(objective.count(batch))
    return total, count


def test_evaluation_is_the_mean_over_all_tokens(tmp_path: Path) -> None:
    rows = examples(UNEVEN)
    config = run_config(tmp_path, per_device_eval_batch_size=3, compute_accuracy=True)
    trainer = make_trainer(config, evals={"validation": rows})
    metrics = trainer.evaluate()
    total, count = nll_of(trainer.model, rows)
    assert metrics["eval_loss"] == pytest.approx(total / count, abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert 0 <= metrics["eval_accuracy"] < 0.2
    batches = [nll_of(trainer.model, rows[at : at + 3]) for at in range(0, len(rows), 3)]
    mean_of_means = sum(total / count for total, count in batches) / len(batches)
    assert abs(metrics["eval_loss"] - mean_of_means) > 1e-4


def test_several_sets_are_reported_each_and_together(tmp_path: Path) -> None:
    left, right = examples(UNEVEN[:4]), examples(UNEVEN[4:], seed=2)
    config = run_config(tmp_path, per_device_eval_batch_size=3)
    trainer = make_trainer(config, evals={"left": left, "right": right})
    for _ in range(2):
        metrics = trainer.evaluate()
        parts = [nll_of(trainer.model, rows) for rows in (left, right)]
        for name, (total, count) in zip(("left", "right"), parts, strict=True):
            assert metrics[f"eval_{name}_loss"] == pytest.approx(total / count, abs=1e-6)
        together = sum(total for total, _ in parts) / sum(count for _, count in parts)
        assert metrics["eval_loss"] == pytest.approx(together, abs=1e-6)
        assert metrics["eval_perplexity"] == pytest.approx(math.exp(together), rel=1e-6)


def test_evaluation_keeps_no_logits(tmp_path: Path) -> None:
    trainer = make_trainer(run_config(tmp_path), evals={"v": examples(UNEVEN)})
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert output.predictions is None and output.label_ids is None


def test_a_huge_loss_has_infinite_perplexity(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert (
        make_trainer(run_config(tmp_path), model, evals={"v": examples((9,))}).evaluate()["eval_perplexity"] == math.inf
    )


def test_the_logged_loss_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    every = make_trainer(run_config(tmp_path / "every", compute_accuracy=True))
    every.train()
    third = make_trainer(run_config(tmp_path / "third", compute_accuracy=True, logging_steps=3))
    output = third.train()
    losses = [loss for _, loss in logged(every, "loss")]
    assert [loss for _, loss in logged(third, "loss")] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert output.training_loss == pytest.approx(sum(losses) / 6)
    assert "nll" not in third.state.log_history[0]


def test_metrics_are_sums_over_counts_of_all_micro_batches(tmp_path: Path) -> None:
    accuracies = []
    for size in (8, 1):
        config = run_config(
            tmp_path, compute_accuracy=True, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size
        )
        trainer = make_trainer(config)
        trainer.train()
        accuracies.append([value for _, value in logged(trainer, "accuracy")])
    assert accuracies[0] == pytest.approx(accuracies[1])
    assert any(accuracies[0])


class Poisoned(CrossEntropy):
    """Gives NaN at the wanted updates."""

    def __init__(self, *updates: int) -> None:
        super().__init__()
        object.__setattr__(self, "updates", updates)
        object.__setattr__(self, "seen", [])

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        output = super().__call__(scores, batch)
        self.seen.append(0)  # type: ignore[attr-defined]
        poison = math.nan if len(self.seen) in self.updates else 1.0  # type: ignore[attr-defined]
        return LossOutput(output.loss_sum * poison, output.metrics)


def test_a_nan_is_logged_as_nan_and_its_update_is_skipped(tmp_path: Path) -> None:
    trainer = make_trainer(run_config(tmp_path), objective=Poisoned(2))
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert math.isnan(losses[1])
    assert all(math.isfinite(loss) for index, loss in enumerate(losses) if index != 1)
    assert all(value.isfinite().all() for value in weights(trainer.model).values())
    log = [json.loads(line) for line in (tmp_path / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert math.isnan(log[1]["loss"])


def test_three_nans_in_a_row_stop_the_run_and_spare_the_checkpoints(tmp_path: Path) -> None:
    config = run_config(tmp_path, save_strategy="steps", save_steps=1, max_steps=20, bf16=True)
    trainer = make_trainer(config, objective=Poisoned(3, 5, 6, 7))
    with pytest.raises(
        DivergedError, match=r"stopped at step 7: .* 3 times in a row .*learning rate .*bf16.*cpu"
    ) as error:
        trainer.train()
    assert "earlier checkpoints are intact" in str(error.value)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert all(value.isfinite().all() for value in weights(trainer.model).values())


def test_the_guard_counts_successive_steps_only() -> None:
    guard = NonFiniteGuard("a test", limit=2)
    facts = {"step": 1, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1}
    guard.observe(finite=False, **facts)
    guard.observe(finite=True, **facts)
    guard.observe(finite=False, **facts)
    with pytest.raises(DivergedError, match=r"loss nan, gradient norm inf, learning rate 0.1; a test"):
        guard.observe(finite=False, **facts)


def test_an_update_without_supervised_tokens_changes_nothing(tmp_path: Path) -> None:
    rows = examples(UNEVEN[:8])
    for row in rows:
        row["labels"] = [-100] * len(row["labels"])
    trainer = make_trainer(run_config(tmp_path, max_steps=2, optim="sgd"), train=rows)
    before = weights(trainer.model)
    trainer.train()
    assert same(before, weights(trainer.model))
    assert logged(trainer, "loss", "updates_without_targets") == [(1, 0.0, 1), (2, 0.0, 1)]


def test_weights_per_token_scale_the_gradient(tmp_path: Path) -> None:
    norms = []
    for weight in (None, 0.25):
        rows = examples(UNEVEN[:8])
        if weight is not None:
            rows = [row | {"weights": [weight * (label != -100) for label in row["labels"]]} for row in rows]
        trainer = make_trainer(run_config(tmp_path, max_steps=1, learning_rate=0.0), train=rows)
        trainer.train()
        norms.append(logged(trainer, "loss", "grad_norm")[0][1:])
    assert [value * 0.25 for value in norms[0]] == pytest.approx(norms[1], rel=1e-5)


def order_of(tmp_path: Path, **options: object) -> list[int]:
    """First tokens of the examples in the order they are drawn, over two epochs."""
    trainer = make_trainer(run_config(tmp_path, max_steps=-1, num_train_epochs=2, **options))
    seen: list[int] = []
    scorer = trainer.scorer

    def record(model: Any, batch: dict[str, Tensor]) -> Scores:
        if "position_ids" in batch:
            seen.extend(batch["input_ids"][batch["position_ids"] == 0].tolist())
        else:
            seen.extend(batch["input_ids"][:, 0].tolist())
        return scorer(model, batch)

    trainer.scorer = record
    trainer.train()
    return seen


def test_shuffling_can_be_switched_off(tmp_path: Path) -> None:
    file_order = [row["input_ids"][0] for row in examples(UNEVEN)]
    assert order_of(tmp_path, disable_shuffling=True) == file_order * 2
    shuffled = order_of(tmp_path)
    assert shuffled[:20] != file_order and shuffled[:20] != shuffled[20:]
    assert sorted(shuffled[:20]) == sorted(shuffled[20:]) == sorted(file_order)
    assert order_of(tmp_path, data_seed=1) != shuffled


def test_examples_of_like_length_are_drawn_together(tmp_path: Path) -> None:
    def padding(trainer: Trainer) -> float:
        batches = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        return 1 - sum(int(mask.sum()) for mask in batches) / sum(mask.numel() for mask in batches)

    grouped = make_trainer(run_config(tmp_path, per_device_train_batch_size=4))
    shuffled = make_trainer(run_config(tmp_path, per_device_train_batch_size=4, train_sampling_strategy="random"))
    assert padding(grouped) < 0.7 * padding(shuffled)


def test_a_stream_is_trained_in_its_own_order(tmp_path: Path) -> None:
    rows = examples(UNEVEN)

    def stream() -> Any:
        yield from rows

    trainer = make_trainer(run_config(tmp_path, max_steps=4), train=IterableDataset.from_generator(stream))
    trainer.train()
    assert trainer.state.global_step == 4
    with pytest.raises(ConfigError, match=r"max_steps: a stream has no length.*set max_steps"):
        make_trainer(run_config(tmp_path, max_steps=-1), train=IterableDataset.from_generator(stream))


@pytest.mark.parametrize(("layout", "counted"), [("padded", "all"), ("padded", "non_padding"), ("flat", "non_padding")])
def test_tokens_seen_are_counted(tmp_path: Path, layout: str, counted: str) -> None:
    options = {"max_steps": -1, "num_train_epochs": 1, "include_num_input_tokens_seen": counted}
    trainer = make_trainer(run_config(tmp_path, batch_layout=layout, **options))
    trainer.train()
    seen = trainer.state.num_input_tokens_seen
    assert seen > sum(UNEVEN) if counted == "all" else seen == sum(UNEVEN)


@pytest.mark.parametrize("options", [{"bf16": True}, {"pure_bf16": True}, {}], ids=["bf16", "pure_bf16", "fp32"])
def test_precisions(tmp_path: Path, options: dict[str, object]) -> None:
    model = tiny_model().bfloat16() if "pure_bf16" in options else tiny_model()
    seen: set[torch.dtype] = set()
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer = make_trainer(run_config(tmp_path, **options), model, evals={"v": examples((9, 12))})
    trainer.train()
    assert seen == {torch.bfloat16 if options else torch.float32}
    expected = torch.bfloat16 if "pure_bf16" in options else torch.float32
    assert {value.dtype for value in model.parameters()} == {expected}
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_neftune_noise_reaches_training_alone(tmp_path: Path) -> None:
    logs = []
    for alpha in (None, 20.0):
        trainer = make_trainer(
            run_config(tmp_path, max_steps=1, neftune_noise_alpha=alpha), evals={"v": examples((9,))}
        )
        quiet = trainer.evaluate()["eval_loss"]
        trainer.train()
        logs.append((logged(trainer)[0], quiet))
    assert logs[0][0] != logs[1][0] and logs[0][1] == logs[1][1]


def test_the_library_does_not_touch_the_stop_tokens(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 7]
    model.config.eos_token_id = 7
    make_trainer(run_config(tmp_path, max_steps=1), model).train()
    assert model.generation_config.eos_token_id == [2, 7]
    assert (model.config.eos_token_id, model.config.pad_token_id) == (7, 0)


def test_a_best_metric_that_is_not_measured_is_one_sentence(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "rouge-9"}
    trainer = make_trainer(run_config(tmp_path, max_steps=2, **options), evals={"v": examples((9,))})
    with pytest.raises(ConfigError, match=r"metric_for_best_model: 'rouge-9' is not measured .*choose from .*loss"):
        trainer.train()


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    config = run_config(
        tmp_path, max_steps=40, eval_strategy="steps", eval_steps=1, early_stopping_steps=3, learning_rate=1.0
    )
    trainer = make_trainer(config, evals={"a": examples((9,)), "b": examples((12,))})
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "eval_loss")]
    assert trainer.state.global_step < 40
    assert len(losses) - 1 - losses.index(min(losses)) == 3


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_learning(tmp_path: Path, lora: bool) -> None:
    rows = examples((12, 9, 15, 8))
    model = with_lora(tiny_model(), r=8, modules_to_save=["lm_head", "embed_tokens"]) if lora else tiny_model()
    trainer = make_trainer(run_config(tmp_path, max_steps=60, per_device_train_batch_size=4), model, train=rows)
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < 0.5 * losses[0]


def test_the_data_set_may_be_a_column_store(tmp_path: Path) -> None:
    trainer = make_trainer(run_config(tmp_path), train=Dataset.from_list(examples(UNEVEN)).with_format(None))
    assert trainer.train().global_step == 6


class Gradients(TrainerCallback):
    """Remembers the gradients of the last update, before the optimizer sees them."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.last = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_chunks_compute_in_the_precision_of_the_model(tmp_path: Path, lora: bool) -> None:
    """From equal weights, bf16 chunks stay as near to the fp32 gradient as the whole batch in bf16 does."""

    def first_update(max_logits: int, **options: object) -> tuple[float, Tensor, set[torch.dtype]]:
        model, gradients, seen = tiny_model(), Gradients(), set()
        model.lm_head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
        config = run_config(tmp_path, max_steps=1, max_grad_norm=0.0, **options)
        trainer = make_trainer(config, with_lora(model) if lora else model, callbacks=[gradients])
        trainer.scorer.max_logits = max_logits
        trainer.train()
        return logged(trainer, "loss")[0][1], gradients.last, seen

    loss, exact, _ = first_update(2**25)
    whole_loss, whole, whole_seen = first_update(2**25, bf16=True)
    chunk_loss, chunked, chunk_seen = first_update(4 * VOCAB, bf16=True)
    assert whole_seen == chunk_seen == {torch.bfloat16}
    assert chunk_loss == pytest.approx(whole_loss, abs=1e-3)
    assert chunk_loss == pytest.approx(loss, abs=1e-2)
    assert 0 < (whole - exact).norm() < 0.1 * exact.norm()
    assert (chunked - exact).norm() < 1.5 * (whole - exact).norm()


class DoubledWeights:
    """A preparation that makes every token weigh twice, and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, model: torch.nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]:
        self.calls.append((len(batches), training))
        assert not torch.is_grad_enabled()
        return [{**batch, "weights": torch.full_like(batch["labels"], 2.0, dtype=torch.float)} for batch in batches]


def test_a_preparation_completes_the_batches_of_an_update_at_once(tmp_path: Path) -> None:
    options = {"max_steps": 2, "gradient_accumulation_steps": 3, "learning_rate": 0.0}
    plain = make_trainer(run_config(tmp_path / "plain", **options), evals={"all": examples(UNEVEN[:2])})
    prepared = make_trainer(run_config(tmp_path / "prepared", **options), evals={"all": examples(UNEVEN[:2])})
    prepared.preparation = preparation = DoubledWeights()
    for trainer in (plain, prepared):
        trainer.train()
    pairs = zip(logged(plain, "loss"), logged(prepared, "loss"), strict=True)
    assert all(two[1] == pytest.approx(2 * one[1]) for one, two in pairs)
    assert prepared.evaluate()["eval_loss"] == pytest.approx(2 * plain.evaluate()["eval_loss"])
    assert preparation.calls == [(3, True), (3, True), (1, False)]
