"""How long single modules compute: forward and backward, in milliseconds, as GPU or CPU time between their hooks.

A module that is recomputed in the backward pass counts its forward again there, and modules inside of a module count in
both. Knows name patterns, no family.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory.errors import ConfigError

FILE = "module_times.jsonl"
Mark = torch.cuda.Event | float


class ModuleTimes(TrainerCallback):
    """Appends one line at every log step: {"step", "modules": {name: {"forward_ms", "backward_ms", "calls"}}}.

    patterns: `*` and `?` as in file names. The times are sums since the last line.
    """

    def __init__(self, patterns: Sequence[str], folder: Path) -> None:
        self._patterns, self._folder = patterns, folder
        self._handles: list[RemovableHandle] = []
        self._open: dict[tuple[str, str], list[Mark]] = defaultdict(list)
        self._spans: dict[str, dict[str, list[tuple[Mark, Mark]]]] = defaultdict(lambda: defaultdict(list))
        self._on_gpu = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        self._on_gpu = torch.cuda.is_available() and not args.use_cpu
        self._folder.mkdir(parents=True, exist_ok=True)
        names = [name for name, _ in model.named_modules() if any(fnmatch(name, rule) for rule in self._patterns)]
        if not names:
            known = ", ".join(name for name, _ in list(model.named_modules())[1:4])
            raise ConfigError(
                f"profile_modules: {','.join(self._patterns)} is the name of no module here (such as {known}); "
                "write a name, with * for any part of it"
            )
        for name in names:
            self._watch(name, model.get_submodule(name))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._spans:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        times = {name: self._sums(spans) for name, spans in self._spans.items()}
        self._spans.clear()
        self._open.clear()  # a recomputation ends early when it has what it needs
        with (self._folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "modules": times}) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, name: str, module: nn.Module) -> None:
        hooks: list[tuple[Callable[[Any], RemovableHandle], Callable[..., None]]] = [
            (module.register_forward_pre_hook, partial(self._begin, name, "forward")),
            (module.register_forward_hook, partial(self._end, name, "forward")),
            (module.register_full_backward_pre_hook, partial(self._begin, name, "backward")),
            (module.register_full_backward_hook, partial(self._end, name, "backward")),
        ]
        self._handles += [register(hook) for register, hook in hooks]

    def _begin(self, name: str, way: str, *unused: object) -> None:
        self._open[name, way].append(self._now())

    def _end(self, name: str, way: str, *unused: object) -> None:
        if self._open[name, way]:
            self._spans[name][way].append((self._open[name, way].pop(), self._now()))

    def _now(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sums(self, spans: dict[str, list[tuple[Mark, Mark]]]) -> dict[str, float]:
        sums = {f"{way}_ms": round(sum(_between(*pair) for pair in spans[way]), 3) for way in ("forward", "backward")}
        return {**sums, "calls": len(spans["forward"])}


def _between(start: Mark, end: Mark) -> float:
    """Milliseconds."""
    if isinstance(start, float) and isinstance(end, float):
        return 1000 * (end - start)
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end)
