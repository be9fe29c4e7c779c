"""The training command: data, model, objective and trainer are wired here and nowhere else.

Data is read, checked and tokenized before any weight is loaded, so a mistake in it costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate.utils import broadcast_object_list

from llamafactory import env, failure
from llamafactory.config import RunConfig, load_config
from llamafactory.config.availability import refuse_unavailable
from llamafactory.data.pipeline import build_datasets
from llamafactory.inference.loading import load_renderer
from llamafactory.logs import get_logger, notice
from llamafactory.models.load import LoadedModel, load_model, load_reference
from llamafactory.models.save import SaveOptions, save_model
from llamafactory.models.tokenizer import TokenizerBundle
from llamafactory.objectives import STAGES
from llamafactory.recipes import run_folder
from llamafactory.recipes.card import write_model_card
from llamafactory.recipes.predict import predict
from llamafactory.recipes.predict_training import TrainerPredictions
from llamafactory.recipes.upload import upload
from llamafactory.rendering.records import Prompt
from llamafactory.rendering.renderer import Renderer
from llamafactory.training.build import build_trainer
from llamafactory.training.plots import plot_history
from llamafactory.training.predictions import predict_pairs
from llamafactory.training.preflight import check_training
from llamafactory.training.results import finish_training, write_results
from llamafactory.training.rollout_build import add_rollouts, check_reward
from llamafactory.training.trainer import Trainer

logger = get_logger(__name__)

PLOTTED = ("eval_loss", "eval_accuracy", "rewards/accuracies", "rewards/margins", "reward", "eval_reward", "kl")


def run_train(source: RunConfig | Mapping[str, object] | str | Path) -> dict[str, float]:
    """Train and evaluate as configured; returns the metrics of the run.

    Leaves weights, tokenizer, logs, plots and the recipe in `output_dir`; after a failure also `error.json`.
    """
    config = source if isinstance(source, RunConfig) else load_config(source, command="train")
    try:
        return _run(config)
    except BaseException as error:
        failure.record(config.training.output_dir, error)
        raise


def _run(config: RunConfig) -> dict[str, float]:
    refuse_unavailable(config, "train")
    training = config.training
    if _only_predicts(config):
        return predict(config)
    args = check_training(config)
    start = run_folder.prepare(config) if training.do_train and env.rank() == 0 else run_folder.StartPoint(None)
    bundle, renderer = load_renderer(config)
    stage = STAGES.load(config.finetuning.stage)
    objective, answers_prompts = stage.build(config), stage.RECORD is Prompt
    if answers_prompts:
        check_reward(config, bundle.tokenizer)
    if not training.do_train and objective.needs_reference and config.preference.ref_model is None:
        notice("ref_model: not given, and nothing is trained, so the model is its own reference and all rewards are 0")
    datasets = build_datasets(config, renderer, for_training=training.do_train)
    predictions = TrainerPredictions(config, renderer, bundle.tokenizer) if _generates(config) else None
    loaded = load_model(config, bundle, trainable=training.do_train, head=objective.head)
    reference = load_reference(config, bundle)
    trainer = build_trainer(
        config,
        model=loaded.model,
        reference=reference,
        tokenizer=bundle.tokenizer,
        datasets=datasets,
        objective=objective,
        args=args,
        save_weights=_saver(config, loaded, bundle, renderer),
    )
    if answers_prompts:
        stop_ids = tuple(renderer.stop_ids)
        add_rollouts(trainer, config, tokenizer=bundle.tokenizer, stop_ids=stop_ids, reference=reference)
    if predictions is not None and training.predict_with_generate:
        trainer.generation_metrics = partial(predictions.evaluate, trainer)
    metrics: dict[str, float] = {}
    if training.do_train:
        metrics |= _train(config, trainer, _agree_on(start))
    if training.do_eval and datasets.evals:
        metrics |= _evaluate(trainer)
    if training.do_predict:
        metrics |= (
            predictions.predict(trainer) if predictions else predict_pairs(trainer, list(datasets.evals.values()))
        )
    if trainer.is_world_process_zero():
        _finish(config, trainer, metrics)
    return metrics


def _generates(config: RunConfig) -> bool:
    """True when the run answers questions: when it predicts, but for scores of a reward model, or evaluates so."""
    training = config.training
    predicts = training.do_predict and config.finetuning.stage != "rm"
    return predicts or (training.predict_with_generate and training.evaluates)


def _only_predicts(config: RunConfig) -> bool:
    """True when one process answers questions and does nothing else, which needs no trainer."""
    training = config.training
    alone = not training.do_train and not training.do_eval and env.world_size() == 1
    return alone and training.do_predict and _generates(config)


def _saver(
    config: RunConfig, loaded: LoadedModel, bundle: TokenizerBundle, renderer: Renderer
) -> Callable[[Path], None]:
    """Writes the live model as a folder that `chat` and `export` can use; for checkpoints and for the end."""
    options = SaveOptions(stop_ids=tuple(renderer.stop_ids), chat_template=renderer.to_jinja())

    def save(folder: Path) -> None:
        final = config.lora.pissa_convert and folder == Path(str(config.training.output_dir))
        chosen = replace(options, plain_adapter=final)  # checkpoints go on exactly, so they stay as they are
        save_model(loaded.model, bundle.tokenizer, folder, record=loaded.record, options=chosen)

    return save


def _agree_on(start: run_folder.StartPoint) -> Path | None:
    """The first process's choice of checkpoint, on every process."""
    chosen = [start.checkpoint]
    if env.world_size() > 1:
        broadcast_object_list(chosen)
    return chosen[0]


def _train(config: RunConfig, trainer: Trainer, checkpoint: Path | None) -> dict[str, float]:
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    real_tokens = config.finetuning.include_effective_tokens_per_second
    return finish_training(trainer, result.metrics, real_tokens=real_tokens)


def _evaluate(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_results(Path(trainer.args.output_dir), "eval", metrics)
    return metrics


def _finish(config: RunConfig, trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """What is written once, when everything has been measured."""
    folder = Path(trainer.args.output_dir)
    if config.training.do_train:
        if config.finetuning.plot_loss:
            history = trainer.state.log_history
            logged = [key for key in PLOTTED if any(key in entry for entry in history)]
            for plot in plot_history(history, folder, ["loss", *logged]):
                logger.info("Wrote %s", plot)
        write_model_card(folder, config, metrics, config.data.dataset)
    if config.training.push_to_hub:
        repository = config.training.hub_model_id or folder.name
        upload(folder, repository, token=config.hub.hf_hub_token, key="push_to_hub")
    logger.info("Finished: %s", folder)
