"""The predict command: questions of a data set, answers of any engine, and how near they are to the references.

Data is read and rendered, and packages are looked for, before any weight is loaded. A killed run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llamafactory import failure
from llamafactory.config import RunConfig, load_config, refuse_unavailable
from llamafactory.data.pipeline import build_datasets
from llamafactory.data.progress import progress
from llamafactory.data.questions import Question, read_questions
from llamafactory.data.sources import Position
from llamafactory.errors import ConfigError
from llamafactory.inference.artefact import complete
from llamafactory.inference.engine import Engine, GenerationOptions, build_engine
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.metrics import require_packages, score_all
from llamafactory.inference.prediction import Answer, Asking, Task, answer_all, digest, make_tasks
from llamafactory.inference.prediction_file import PREDICTIONS_FILE, PredictionFile
from llamafactory.logs import get_logger, notice
from llamafactory.recipes.run_folder import make_writable
from llamafactory.rendering.renderer import Renderer
from llamafactory.training.callbacks.log_file import LOG_FILE, PREDICTION_INTERVAL, append_line, progress_of
from llamafactory.training.results import write_results

logger = get_logger(__name__)

_WIDE = 128  # questions at a time, of which an engine runs as many as it can
_WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")


def run_predict(source: RunConfig | Mapping[str, object] | str | Path) -> dict[str, float]:
    """Answer the questions of `eval_dataset`; returns the metrics.

    Leaves generated_predictions.jsonl, predict_results.json and all_results.json in `output_dir`.
    """
    config = complete(source if isinstance(source, RunConfig) else load_config(source, command="predict"))
    try:
        return predict(config)
    except BaseException as error:
        failure.record(config.training.output_dir, error)
        raise


def predict(config: RunConfig) -> dict[str, float]:
    """The same for a config of `predict`, or of `train` with nothing else to do."""
    refuse_unavailable(config, config.command)
    if config.finetuning.stage == "rm":
        raise ConfigError(
            f"stage: {config.model.model_name_or_path!r} is a reward model (rm), which gives scores and no answers; "
            "use `llamafactory-cli train` with do_predict: true to score the pairs of eval_dataset"
        )
    folder = Path(str(config.training.output_dir))
    make_writable(folder)
    bundle, renderer = load_renderer(config)
    tasks = prepare_tasks(config, renderer, bundle.tokenizer)
    file = PredictionFile(folder, facts_of(config, tasks, weights_of(config)))
    file.resume(overwrite=config.training.overwrite_output_dir)
    began, before = time.monotonic(), len(file.answers)
    ask(lambda: build_engine(config), tasks, config, file, log=folder / LOG_FILE)
    return finish(config, tasks, file, num_new=len(tasks) - before, seconds=time.monotonic() - began)


def prepare_tasks(config: RunConfig, renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> list[Task]:
    """Read and render the questions of a run. Raises DataError, and MissingPackageError when metrics cannot be made."""

    def decode(ids: Sequence[int]) -> str:
        skip = config.generation.skip_special_tokens
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    tasks = make_tasks(_questions(config, renderer), renderer, decode)
    if any(task.label for task in tasks):
        require_packages("predict: comparing answers with references")
    long = [task for task in tasks if task.num_tokens > config.data.cutoff_len]
    if long:
        notice(
            f"cutoff_len: {len(long)} prompts are longer than {config.data.cutoff_len} tokens (first: "
            f"{long[0].conversation.source} with {long[0].num_tokens}) and are asked whole: predictions cut no prompt"
        )
    return tasks


def _questions(config: RunConfig, renderer: Renderer) -> list[Question]:
    """Those of eval_dataset, or of the part of dataset that val_size holds back."""
    data = config.data
    if data.eval_dataset:
        return read_questions(config, data.eval_dataset)
    if data.streaming or not data.dataset:
        raise ConfigError(
            "eval_dataset: not given, and predictions are made for whole conversations, which neither prepared data "
            "(tokenized_path) nor a stream can give; name a data set in eval_dataset"
        )
    held = _held_back(config, renderer)
    by_source = {question.prompt.source: question for question in read_questions(config, data.dataset)}
    return [by_source[source] for source in held if source in by_source]


def _held_back(config: RunConfig, renderer: Renderer) -> list[str]:
    """Where the rows of the validation part are from, as training splits them off."""
    data = config.data.model_copy(update={"packing": False, "neat_packing": False, "tokenized_path": None})
    quiet = config.training.model_copy(update={"output_dir": None})
    datasets = build_datasets(replace(config, data=data, training=quiet), renderer, for_training=False)
    return list(datasets.evals["validation"]["source"])


def facts_of(config: RunConfig, tasks: Sequence[Task], weights: object) -> dict[str, object]:
    """What the answers of a run depend on, by the names of options."""
    sections = (config.model, config.quantization)
    keys = {key: value for section in sections for key, value in section.model_dump(mode="json").items()}
    options = {key: value for key, value in asdict(options_of(config)).items() if key != "seed"}
    keys["model_revision"] = config.hub.model_revision
    return {**keys, **options, "seed": config.training.seed, "weights": weights, "data": digest(tasks)}


def options_of(config: RunConfig) -> GenerationOptions:
    """The generation options of a run's predictions."""
    options = GenerationOptions.from_config(config.generation)
    return replace(options, num_beams=config.data.eval_num_beams or options.num_beams)


def weights_of(config: RunConfig) -> list[list[object]]:
    """Name, size and time of the local weight files, which change when a model is trained again."""
    names = (config.model.model_name_or_path, *config.model.adapter_name_or_path)
    folders = [Path(name).expanduser() for name in names if name]
    files = [path for folder in folders if folder.is_dir() for kind in _WEIGHT_FILES for path in folder.glob(kind)]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)]


def ask(
    build: Callable[[], Engine],
    tasks: Sequence[Task],
    config: RunConfig,
    file: PredictionFile,
    *,
    log: Path | None = None,
) -> None:
    """Ask what has no answer yet and write each answer as it comes; builds the engine only when there is something.

    log: the file that gets a line of progress now and then.
    """
    waiting = [task for task in tasks if task.index not in file.answers]
    if not waiting:
        return
    asking = Asking(options_of(config), _width(config), config.training.seed, config.data.on_bad_example == "skip")
    engine, first, began = build(), len(tasks) - len(waiting), time.monotonic()
    done = first
    with progress("predicting") as shown:

        def note(answer: Answer) -> None:
            nonlocal done
            file.add(answer)
            done += 1
            shown.update(Position(done, len(tasks)), done)
            if log is not None and ((done - first) % PREDICTION_INTERVAL == 0 or done == len(tasks)):
                reached = progress_of(done, len(tasks), first=first, seconds=time.monotonic() - began)
                append_line(log, {"current_steps": done, "total_steps": len(tasks), **reached})

        answer_all(engine, waiting, asking, note)


def _width(config: RunConfig) -> int:
    """Questions at a time: so many as were asked for, else more than an engine takes, which then decides."""
    return config.training.per_device_eval_batch_size if config.asks_in_batches else _WIDE


def finish(
    config: RunConfig, tasks: Sequence[Task], file: PredictionFile, *, num_new: int, seconds: float
) -> dict[str, float]:
    """Write the final file and the metrics. num_new: answers made in these seconds, the others were there already."""
    file.finish(tasks)
    metrics = measure(config, tasks, file.answers, prefix="predict")
    metrics |= {"predict_runtime": round(seconds, 4), "predict_samples": float(len(tasks))}
    if num_new:
        metrics["predict_samples_per_second"] = round(num_new / max(seconds, 1e-9), 3)
    folder = Path(str(config.training.output_dir))
    write_results(folder, "predict", metrics)
    for kind, why in (("cut_short", "reached the length limit"), ("failed", "could not be asked")):
        if metrics[f"predict_{kind}"]:
            logger.warning("predict: %d of %d questions %s", metrics[f"predict_{kind}"], len(tasks), why)
    logger.info("Wrote %s", folder / PREDICTIONS_FILE)
    return metrics


def measure(
    config: RunConfig, tasks: Sequence[Task], answers: Mapping[int, Answer], *, prefix: str
) -> dict[str, float]:
    """Mean metrics of the tasks that have a reference; with eval_on_each_dataset also those of each data set.

    cut_short: answers that reached the length limit. failed: prompts that did not fit, whose answer is empty.
    """
    metrics = _scores(tasks, answers, prefix)
    if config.data.eval_on_each_dataset:
        for name in dict.fromkeys(task.dataset for task in tasks):
            metrics |= _scores([task for task in tasks if task.dataset == name], answers, f"{prefix}_{name}")
    ends = [answers[task.index].end for task in tasks]
    counts = {"cut_short": ends.count("length"), "failed": ends.count("failed")}
    return metrics | {f"{prefix}_{name}": float(count) for name, count in counts.items()}


def _scores(tasks: Sequence[Task], answers: Mapping[int, Answer], prefix: str) -> dict[str, float]:
    pairs = [(answers[task.index].text, task.label) for task in tasks if task.label]
    return {f"{prefix}_{name}": value for name, value in score_all(pairs).items()}
