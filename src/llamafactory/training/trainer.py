"""The one trainer: batches, denominators, evaluation, logging and checkpoints, for every stage.

Knows nothing of any stage: an objective says how many loss units a batch holds and what their summed loss is. Losses
are divided once, by the number of units in the whole update (all micro-batches, all processes), so the way a global
batch is split changes nothing. The logged loss is the mean of the steps since the last log line; the logged metrics are
sums over counts of all their batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_callback import ExportableState, TrainerControl
from transformers.trainer_utils import EvalLoopOutput

from llamafactory.errors import ConfigError
from llamafactory.logs import get_logger
from llamafactory.models.value_head import save_value_head, split_state
from llamafactory.objectives import Objective
from llamafactory.optim import TensorwiseOptimizer
from llamafactory.training import checkpointing, run_state
from llamafactory.training.guard import NonFiniteGuard
from llamafactory.training.preparation import Foresighted, Preparation
from llamafactory.training.samplers import EpochSampler, EvenSampler, FixedSampler, MaskedTail, longest_first
from llamafactory.training.schedules import scheduler_arguments
from llamafactory.training.scoring import Scorer
from llamafactory.training.sums import MetricSums, means

logger = get_logger(__name__)


class Trainer(transformers.Trainer):
    """The only subclass of transformers' trainer. Build it with `build.build_trainer`.

    order: the order of the training examples; None for streams. guard: stops the run when numbers are not finite.
    optimizer_factory: makes the optimizer, or answers None to leave the choice to transformers.
    save_weights: writes the live model and what belongs beside it into a folder.
    preparation: what a stage does to the batches of an update before the update; None for most stages.
    generation_metrics: metrics of generated answers by their prefix, a part of every evaluation; None without.
    """

    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None
    _total_loss_scalar: float
    control: TrainerControl

    def __init__(
        self,
        *,
        objective: Objective,
        scorer: Scorer,
        order: EpochSampler | None,
        guard: NonFiniteGuard,
        save_weights: Callable[[Path], None],
        optimizer_factory: Callable[[nn.Module], torch.optim.Optimizer | None] = lambda model: None,
        preparation: Preparation | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.objective, self.scorer, self.guard = objective, scorer, guard
        self._order, self._optimizer_factory, self._save_weights = order, optimizer_factory, save_weights
        self.preparation = preparation
        self.generation_metrics: Callable[[str], dict[str, float]] | None = None
        self._seen_ahead: list[Any] = []
        self.train_sums, self._eval_sums, self._all_eval_sums = MetricSums(), MetricSums(), MetricSums()
        self._step_loss: Tensor | None = None
        self._num_empty_updates = torch.zeros((), dtype=torch.long, device=self.args.device)

    # Batches and their order

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """All micro-batches of one update, and the number of loss units in them over all processes."""
        batches = self._prepare_batches(self._draw(epoch_iterator, num_batches), training=True)
        return batches, self._get_num_items_in_batch(batches, device)

    def _draw(self, epoch_iterator: Iterator[Any], num_batches: int) -> list[Any]:
        """The batches of this update; those of the following ones too, when the preparation must see them.

        Batches seen ahead of their turn are kept, so every update takes its own `num_batches` from the data: a resumed
        run, which skips exactly those, finds the same ones.
        """
        num_updates = self.preparation.num_updates() if isinstance(self.preparation, Foresighted) else 1
        missing = max(0, num_updates * num_batches - len(self._seen_ahead))
        batches = [*self._seen_ahead, *islice(epoch_iterator, missing)]
        self._seen_ahead = batches[num_batches:]
        return batches[: num_updates * num_batches]

    @torch.no_grad()
    def _prepare_batches(self, batches: list[Any], *, training: bool) -> list[Any]:
        if self.preparation is None or not batches:
            return batches
        return self.preparation(self.model, batches, training=training)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        counts = [self.objective.count(batch).to(device) for batch in batch_samples]
        count = torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long, device=device)
        count = self.accelerator.reduce(count, reduction="sum")
        self._num_empty_updates = self._num_empty_updates + (count == 0)
        return count.clamp(min=1)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any
    ) -> DataLoader[Any]:
        if self.args.world_size > 1 and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
            dataset = MaskedTail(dataset)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler | None:
        return self._even(self._order, self._train_batch_size)

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochSampler | None:
        return self._even(_eval_order(eval_dataset), self.args.eval_batch_size)

    def _even(self, order: EpochSampler | None, batch_size: int) -> EpochSampler | None:
        if order is None or self.args.world_size == 1:
            return order
        return EvenSampler(order, batch_size * self.args.world_size)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        # On resume the sampler is wrapped once more, and the library's own set_epoch no longer reaches it.
        if self._order is not None:
            self._order.set_epoch(epoch)
        self._seen_ahead = []
        super()._run_epoch(epoch=epoch, **kwargs)

    # Loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """The batch's share of the update's loss: its summed loss over the units of the whole update."""
        assert num_items_in_batch is not None, "the trainer counts the loss units of every update"
        output = self.objective(self.scorer(model, inputs), inputs)
        self.train_sums.add(output.metrics)
        # Data-parallel training averages gradients over processes; the count already covers all of them.
        loss = output.loss_sum / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one micro-batch."""
        loss = super().training_step(*args, **kwargs)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once per update, after clipping and before the optimizer: the place to refuse a broken update."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        optimizer = run_state.core_optimizer(self)
        if isinstance(optimizer, TensorwiseOptimizer) and optimizer.in_backward:
            norm = optimizer.applied_grad_norm()
        loss, self._step_loss = self._step_loss, None
        values = torch.stack([torch.as_tensor(value).detach().float().to(self.args.device) for value in (loss, norm)])
        scaled = self.accelerator.scaler is not None
        judged = values[:1] if scaled else values  # a scaler meets infinite gradients on purpose and skips them itself
        bad = self.accelerator.reduce((~judged.isfinite()).any().float(), reduction="sum")
        finite = not bad.item()
        if not finite and not scaled:
            model.zero_grad(set_to_none=True)
        self.guard.observe(
            finite=finite,
            step=self.state.global_step + 1,
            loss=values[0].item(),
            grad_norm=values[1].item(),
            learning_rate=self._get_learning_rate(),
        )
        return norm

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Tokens seen so far; without an attention mask (flat and packed batches) every token counts."""
        counting, mask = self.args.include_num_input_tokens_seen, inputs.get("attention_mask")
        if counting != "no":
            real = counting == "non_padding" and mask is not None
            count = real_tokens(mask) if real else torch.tensor(inputs["input_ids"].numel(), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.reduce(count, reduction="sum").item())

    # Optimizer and schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer the run's options choose, or transformers' own."""
        if self.optimizer is None:
            self.optimizer = self._optimizer_factory(self.model if model is None else model)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule by name, with the arguments it cannot do without."""
        self.args.lr_scheduler_kwargs = scheduler_arguments(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report values; a training line also carries the metrics since the last one."""
        if "loss" in logs:
            metrics = self.train_sums.take(self.accelerator)
            logs |= {name: value for name, value in means(metrics).items() if name != "nll"}
            if self._num_empty_updates.item():
                logs["updates_without_targets"] = self._num_empty_updates.item()
                self._num_empty_updates.zero_()
            self._tr_loss.zero_()  # x - x is not 0 for NaN: without this, one NaN would stay in every later line
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics of the evaluation data; for several sets, of each and of all together."""
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        whole = metric_key_prefix == "eval"  # the library calls this once more for each of several sets
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if several:
            together = _eval_metrics(self._all_eval_sums.take(), metric_key_prefix)
            self.log(dict(together))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, together)
            metrics |= together
        if whole and self.generation_metrics is not None:
            generated = self.generation_metrics(metric_key_prefix)
            self.log(dict(generated))
            metrics |= generated
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sums over the whole set, divided once; keeps no logits."""
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        sums = self._eval_sums.take(self.accelerator)
        self._all_eval_sums.add(sums)
        output.metrics.update(_eval_metrics(sums, metric_key_prefix))
        output.metrics.pop(f"{metric_key_prefix}_model_preparation_time", None)
        return output

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Add one batch to the sums of the evaluation."""
        (batch,) = self._prepare_batches([self._prepare_inputs(inputs)], training=False)
        output = self.objective(self.scorer(model, batch), batch)
        count = self.objective.count(batch).to(output.loss_sum)
        self._eval_sums.add({"loss": torch.stack([output.loss_sum, count]), **output.metrics})
        return None, None, None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = str(self.args.metric_for_best_model).removeprefix("eval_")
        known = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
        if self.args.metric_for_best_model is not None and wanted not in known:
            raise ConfigError(
                f"metric_for_best_model: {wanted!r} is not measured by this evaluation; choose from {', '.join(known)}"
            )
        return super()._determine_best_metric(metrics, trial)

    # Checkpoints

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint folder; True takes the newest complete one.

        Raises CheckpointError when the checkpoint cannot continue the run exactly, DivergedError when numbers stay
        non-finite.
        """
        folder = run_state.resolve(Path(self.args.output_dir), resume_from_checkpoint)
        if self.args.should_save:
            checkpointing.clean(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        if folder is not None:
            facts = checkpointing.check_resumable(folder, weights_only_allowed=self.args.save_only_model)
            run_state.report_changes(facts, self.checkpoint_facts())
        return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        places = super()._init_training_state(max_steps, *args)
        run_state.refuse_finished(self.state.global_step, max_steps)
        if self.args.save_strategy != "no":
            run_state.check_room(self, max_steps)
        return places

    def _finalize_training(self, *args: Any) -> Any:
        # The library divides the loss of all steps by the steps of this call; a resumed run has made more of them.
        share = (self.state.global_step - self._initial_global_step) / max(self.state.global_step, 1)
        waiting = self.accelerator.reduce(self._tr_loss, reduction="mean").item()
        self._total_loss_scalar = (self._total_loss_scalar + waiting) * share
        self._tr_loss.zero_()
        return super()._finalize_training(*args)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.guard.count:
            logger.warning("Step %d: no checkpoint is written after a non-finite loss", self.state.global_step)
            return
        self.store_flos()
        run_state.save_checkpoint(self)

    def store_callback_states(self) -> None:
        """Copy the state of callbacks that keep one into the trainer state, for a checkpoint."""
        stored: dict[str, Any] = {}
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                stored.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {
            name: states if len(states) > 1 else states[0] for name, states in stored.items()
        }

    def checkpoint_facts(self) -> checkpointing.Facts:
        """What the manifest of a checkpoint taken now says."""
        return checkpointing.Facts(
            step=self.state.global_step,
            resumable=not self.args.save_only_model,
            native=not (self.is_deepspeed_enabled or self.is_fsdp_enabled),
            world_size=self.args.world_size,
            global_batch_size=self.get_total_train_batch_size(self.args),
            num_examples=len(self._order) if self._order is not None else None,
            seed=self.args.seed,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights and what belongs beside them; unlike the library, no pickled training arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            self._save_weights(folder)
        else:  # gathered from the shards of several processes
            core = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            rest, head = split_state(state_dict)
            core.save_pretrained(folder, state_dict=rest)
            save_value_head(head, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.checkpoint_facts().native:
            run_state.save_optimizer(self, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not checkpointing.read_facts(Path(checkpoint)).resumable:
            return
        run_state.load_preparation(self, Path(checkpoint))
        if self.checkpoint_facts().native:
            run_state.load_optimizer(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_scaler(self, output_dir: str) -> None:
        run_state.save_scaler(self, Path(output_dir))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            run_state.load_scaler(self, Path(checkpoint))

    def _save_rng_state(self, output_dir: str) -> None:
        run_state.save_rank_state(self, Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and checkpointing.read_facts(Path(checkpoint)).resumable:
            run_state.load_rank_state(self, Path(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.checkpoint_facts().native:
            run_state.load_weights_into(self, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.checkpoint_facts().native:
            run_state.load_weights_into(self, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


def real_tokens(mask: Tensor) -> Tensor:
    """Tokens that are not padding by an attention mask [B, T], or [B, 1, T, T] where some position must see them."""
    if mask.dim() == 2:
        return mask.sum()
    sees = mask if mask.dtype == torch.bool else mask == 0
    return sees.any(dim=-2).sum()


def _eval_order(dataset: Any) -> EpochSampler | None:
    """Longest examples first where lengths are known, else the order of the set; None for streams."""
    if isinstance(dataset, MaskedTail):
        dataset = dataset.inner
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    if "length" in getattr(dataset, "column_names", ()):
        return longest_first(dataset["length"][:])
    return FixedSampler(range(len(dataset)))


def _eval_metrics(sums: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """Means of the sums, with `perplexity` = exp(mean `nll`), infinite on overflow."""
    values = means(sums)
    if "nll" in values:
        nll = values.pop("nll")
        values["perplexity"] = math.exp(nll) if nll < 700 else nll if math.isnan(nll) else math.inf
    return {f"{prefix}_{name}": value for name, value in values.items()}
