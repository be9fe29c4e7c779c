"""Watching where the time of a run goes: traces of torch.profiler, and the times of single modules.

Both write into `profiler_output_dir`, or `profiler` inside the output folder, one folder `rank_<N>` for each process.
Knows no stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory import env
from llamafactory.config.sections.profiler import ProfilerConfig
from llamafactory.logs import get_logger
from llamafactory.training.callbacks.module_times import ModuleTimes

logger = get_logger(__name__)


def profilers(config: ProfilerConfig, output_dir: str) -> Iterator[TrainerCallback]:
    """The callbacks that the options ask for."""
    folder = Path(config.profiler_output_dir or Path(output_dir) / "profiler") / f"rank_{env.rank()}"
    if config.enable_torch_profiler:
        yield TorchProfiler(config, folder)
    if config.profile_modules:
        yield ModuleTimes(config.profile_modules, folder)


class TorchProfiler(TrainerCallback):
    """Records `profiler_active_steps` of every round and writes each round as `step_<N>.pt.trace.json`."""

    def __init__(self, config: ProfilerConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._profile: profile | None = None
        self._step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config, self._step = self._config, state.global_step
        self._folder.mkdir(parents=True, exist_ok=True)
        devices = [ProfilerActivity.CUDA] if torch.cuda.is_available() and not args.use_cpu else []
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *devices],
            schedule=schedule(
                wait=config.profiler_wait_steps,
                warmup=config.profiler_warmup_steps,
                active=config.profiler_active_steps,
                repeat=config.profiler_repeat,
            ),
            on_trace_ready=self._write,
            record_shapes=config.profiler_record_shapes,
            profile_memory=config.profiler_profile_memory,
            with_stack=config.profiler_with_stack,
        )
        self._profile.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._profile is not None:
            self._profile.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if not any(self._folder.glob("*.json")):
            logger.warning(
                "enable_torch_profiler: the run ended before a round was recorded; lower profiler_wait_steps, "
                "profiler_warmup_steps or profiler_active_steps"
            )

    def _write(self, watched: profile) -> None:
        file = self._folder / f"step_{self._step}.pt.trace.json"
        watched.export_chrome_trace(str(file))
        logger.info("Wrote %s", file)
