"""Answers of the model being trained: predictions after training, and generation metrics in evaluations.

Every process answers its share with its own copy of the model; the first one writes. The text is what `chat` gives for
the weights as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from llamafactory import env
from llamafactory.config import RunConfig
from llamafactory.inference.engine import Engine
from llamafactory.inference.engines.huggingface import HuggingFaceEngine
from llamafactory.inference.prediction import Answer
from llamafactory.inference.prediction_file import PredictionFile
from llamafactory.models.kernels.mixture_of_depths import is_marked
from llamafactory.recipes.predict import ask, facts_of, finish, measure, prepare_tasks, weights_of
from llamafactory.rendering.renderer import Renderer
from llamafactory.training.callbacks.log_file import LOG_FILE
from llamafactory.training.trainer import Trainer

Evaluation = Callable[[str], dict[str, float]]


class TrainerPredictions:
    """The questions of a training run, read before the model is loaded."""

    def __init__(self, config: RunConfig, renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config, self._renderer, self._tokenizer = config, renderer, tokenizer
        self._tasks = prepare_tasks(config, renderer, tokenizer)

    def evaluate(self, trainer: Trainer, prefix: str) -> dict[str, float]:
        """Metrics of answers by the model as it is now; nothing is kept. Called on every process."""
        with TemporaryDirectory() as folder:
            file = self._file(Path(folder), None)
            file.resume()
            self._ask(trainer, file)
            answers = self._together(trainer, file)
        return measure(self._config, self._tasks, answers, prefix=prefix)

    def predict(self, trainer: Trainer) -> dict[str, float]:
        """Write the predictions and their metrics. Called on every process; only the first one's metrics are whole.

        Weights that were just trained are not on disk as they are, so their unfinished answers are not gone on with.
        """
        config, began = self._config, time.monotonic()
        trained = config.training.do_train
        weights = f"trained for {trainer.state.global_step} steps" if trained else weights_of(config)
        file = self._file(Path(str(config.training.output_dir)), weights)
        if trainer.is_world_process_zero():
            if trained:
                file.discard()
            file.resume(overwrite=trained or config.training.overwrite_output_dir)
        trainer.accelerator.wait_for_everyone()  # only the first process may remove parts of the others
        if not trainer.is_world_process_zero():
            file.resume(overwrite=True)
        before = len(file.answers)
        self._ask(trainer, file, log=Path(trainer.args.output_dir) / LOG_FILE if env.rank() == 0 else None)
        file.answers = self._together(trainer, file)
        if not trainer.is_world_process_zero():
            return {}
        num_new, seconds = len(file.answers) - before, time.monotonic() - began
        return finish(config, self._tasks, file, num_new=num_new, seconds=seconds)

    def _file(self, folder: Path, weights: object) -> PredictionFile:
        return PredictionFile(folder, facts_of(self._config, self._tasks, weights), rank=env.rank())

    def _ask(self, trainer: Trainer, file: PredictionFile, log: Path | None = None) -> None:
        share = self._tasks[env.rank() :: env.world_size()]
        with _borrowed(trainer, use_cache=self._config.compute.use_kv_cache) as model:
            ask(lambda: self._engine(model), share, self._config, file, log=log)

    def _engine(self, model: Any) -> Engine:
        size = self._config.training.per_device_eval_batch_size
        return HuggingFaceEngine(model, self._tokenizer, self._renderer, max_concurrent=size)

    def _together(self, trainer: Trainer, file: PredictionFile) -> dict[int, Answer]:
        """The answers of all processes, on all of them."""
        found: Sequence[Answer] = list(file.answers.values())
        if env.world_size() > 1:
            found = gather_object(list(found))
        return {answer.index: answer for answer in found}


@contextmanager
def _borrowed(trainer: Trainer, *, use_cache: bool) -> Iterator[Any]:
    """The plain model for an engine, which changes its mode and its generation settings; all comes back afterwards.

    use_cache: keep keys and values while answering, which training does not.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    core: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    was_training, settings, cached = core.training, core.generation_config, core.config.use_cache
    core.config.use_cache = use_cache and not is_marked(core.config)  # who skips layers keeps no keys
    try:
        yield core
    finally:
        core.generation_config, core.config.use_cache = settings, cached
        model.train(was_training)
