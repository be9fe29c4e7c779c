"""Rules about what a command needs: models, folders, adapters and engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamafactory import env
from llamafactory.config.run import RunConfig
from llamafactory.config.section import INFER
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.config.violation import Rule, Violation

_ENGINES = (*INFER, "predict")


def needs_a_model(config: RunConfig) -> Iterator[Violation]:
    """Everything but a look at the data starts from a model."""
    if config.model.model_name_or_path is None and config.command != "data":
        yield Violation(
            ("model_name_or_path",),
            f"the command {config.command!r} needs a model",
            "give a local folder or the name of a hub repository",
        )


def needs_a_task(config: RunConfig) -> Iterator[Violation]:
    """Command train with nothing to do; eval without a benchmark; export without a target."""
    training = config.training
    nothing = not (training.do_train or training.evaluates or training.do_predict or config.data.tokenized_path)
    if config.command == "train" and nothing:
        yield Violation(("do_train",), "there is nothing to do", "set do_train, do_eval or do_predict to true")
    if config.command == "eval" and config.evaluation.task is None:
        yield Violation(("task",), "the command 'eval' needs a benchmark", "write for example task: mmlu_test")
    if config.command == "export" and config.export.export_dir is None:
        yield Violation(("export_dir",), "the command 'export' needs a target", "give the folder to write to")


def needs_updates(config: RunConfig) -> Iterator[Violation]:
    """A training run makes at least one update."""
    training = config.training
    if config.command == "train" and training.do_train and training.max_steps <= 0 and training.num_train_epochs == 0:
        yield Violation(
            ("num_train_epochs", "max_steps"),
            "the run would end without an update",
            "raise one of the two, or set do_train to false",
        )


def needs_an_output_folder(config: RunConfig) -> Iterator[Violation]:
    """A run that writes something says where."""
    training = config.training
    writes = config.command == "predict" or training.do_train or training.evaluates or training.do_predict
    if config.command in {"train", "predict"} and writes and training.output_dir is None:
        yield Violation(("output_dir",), "the run has no folder to write to", "give a folder of its own to every run")


def uploads_need_the_network(config: RunConfig) -> Iterator[Violation]:
    """Offline mode forbids the upload, which comes at the very end of a run."""
    asked = (("push_to_hub", config.training.push_to_hub), ("export_hub_model_id", config.export.export_hub_model_id))
    if not env.is_enabled("HF_HUB_OFFLINE"):
        return
    for key, value in asked:
        if value and config.command in {"train", "export"}:
            yield Violation((key,), "the variable HF_HUB_OFFLINE forbids the upload", f"unset it, or remove {key}")


def benchmark_results_are_kept(config: RunConfig) -> Iterator[Violation]:
    """Results of a benchmark never replace earlier ones."""
    folder = config.evaluation.save_dir
    if config.command == "eval" and folder is not None and Path(folder).exists():
        yield Violation(("save_dir",), "the folder exists already", "choose a new one")


def adapters_need_an_adapter_method(config: RunConfig) -> Iterator[Violation]:
    """Adapters cannot be given to methods that train the base itself."""
    method = config.finetuning.finetuning_type
    if config.model.adapter_name_or_path and method not in ADAPTER_METHODS:
        yield Violation(
            ("adapter_name_or_path", "finetuning_type"),
            "this method has no adapters",
            "set finetuning_type to lora, or remove adapter_name_or_path",
        )


def engine_fits_the_command(config: RunConfig) -> Iterator[Violation]:
    """Training and benchmarks run on the plain engine."""
    if config.command not in _ENGINES and config.model.infer_backend != "huggingface":
        yield Violation(
            ("infer_backend",), f"the command {config.command!r} has one engine", "set infer_backend to huggingface"
        )


def vllm_limits(config: RunConfig) -> Iterator[Violation]:
    """What vLLM cannot do with our options."""
    if config.command not in _ENGINES or config.model.infer_backend != "vllm":
        return
    if config.finetuning.stage != "sft":
        yield Violation(("stage", "infer_backend"), "vLLM only answers with sft models", "set stage to sft")
    if config.quantization.quantization_bit is not None:
        yield Violation(
            ("quantization_bit", "infer_backend"), "vLLM does not quantize while loading", "remove quantization_bit"
        )
    if config.model.rope_scaling is not None:
        yield Violation(("rope_scaling", "infer_backend"), "vLLM does not stretch positions", "remove rope_scaling")
    if len(config.model.adapter_name_or_path) > 1:
        yield Violation(
            ("adapter_name_or_path", "infer_backend"), "vLLM takes one adapter", "merge the others with `export` first"
        )


def gptq_export(config: RunConfig) -> Iterator[Violation]:
    """Quantizing while exporting needs text to calibrate on, and a merged model."""
    if config.command != "export" or config.export.export_quantization_bit is None:
        return
    if config.export.export_quantization_dataset is None:
        yield Violation(
            ("export_quantization_dataset", "export_quantization_bit"),
            "quantizing needs calibration text",
            "give a text file or a hub data set",
        )
    if config.model.adapter_name_or_path:
        yield Violation(
            ("adapter_name_or_path", "export_quantization_bit"),
            "an adapter cannot be merged into quantized weights",
            "export the merged model first, then quantize that",
        )


def media_limits(config: RunConfig) -> Iterator[Violation]:
    """The largest size is not below the smallest."""
    for kind in ("image", "video"):
        largest, smallest = (getattr(config.media, f"{kind}_{edge}_pixels") for edge in ("max", "min"))
        if largest < smallest:
            yield Violation(
                (f"{kind}_max_pixels", f"{kind}_min_pixels"),
                "the largest area is below the smallest",
                f"raise {kind}_max_pixels or lower {kind}_min_pixels",
            )


RULES: tuple[Rule, ...] = (
    needs_a_model,
    needs_a_task,
    needs_updates,
    needs_an_output_folder,
    uploads_need_the_network,
    benchmark_results_are_kept,
    adapters_need_an_adapter_method,
    engine_fits_the_command,
    vllm_limits,
    gptq_export,
    media_limits,
)
