"""Measuring a run step by step. Knows no trainer."""

from typing import ClassVar

from llamafactory.config.section import TRAIN, CommaList, Positive, Section, Whole, option


class ProfilerConfig(Section):
    """Traces of torch.profiler and times of single modules."""

    title: ClassVar[str] = "Profiler"
    commands: ClassVar[tuple[str, ...]] = TRAIN

    enable_torch_profiler: bool = option(False, "Write traces of torch.profiler.")
    profiler_output_dir: str | None = option(None, "Folder of the traces; left out, profiler inside output_dir.")
    profiler_wait_steps: Whole = option(1, "Steps before each round that are not watched.", unit="steps")
    profiler_warmup_steps: Whole = option(1, "Steps of each round that are watched and thrown away.", unit="steps")
    profiler_active_steps: Positive = option(1, "Steps of each round that are recorded.", unit="steps")
    profiler_repeat: Whole = option(1, "Rounds; 0 goes on to the end.", unit="rounds")
    profiler_record_shapes: bool = option(True, "Record tensor shapes.")
    profiler_profile_memory: bool = option(True, "Record memory.")
    profiler_with_stack: bool = option(True, "Record Python stacks.")
    profile_modules: CommaList = option((), "Name patterns of modules to time, separated by commas.")
