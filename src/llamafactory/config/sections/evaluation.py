"""Multiple-choice benchmarks. Knows no engine."""

from typing import ClassVar, Literal

from llamafactory.config.section import Positive, Section, Whole, option


class EvaluationConfig(Section):
    """Which benchmark the command eval runs; its random seed is the key seed."""

    title: ClassVar[str] = "Benchmarks"
    commands: ClassVar[tuple[str, ...]] = ("eval",)

    task: str | None = option(None, "Benchmark and split, such as mmlu_test.")
    task_dir: str = option("evaluation", "Folder of the benchmarks.")
    batch_size: Positive = option(4, "Questions answered at a time and device.", unit="questions")
    lang: Literal["en", "zh"] = option("en", "Language of the prompt.")
    n_shot: Whole = option(5, "Solved examples in the prompt.", unit="examples")
    save_dir: str | None = option(None, "Folder for the results; must not exist yet.")
    download_mode: str = option("reuse_dataset_if_exists", "Download mode of the package datasets.")
