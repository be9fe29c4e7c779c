"""What engines of other programs need to know of a run: the folder of the model, one adapter, and what they refuse.

Knows configurations and folders; no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.engine import GenerationOptions
from llamafactory.logs import notice
from llamafactory.models.attach import adapter_folders
from llamafactory.models.hub import fetch

if TYPE_CHECKING:
    from llamafactory.config import RunConfig
    from llamafactory.models.tokenizer import TokenizerBundle


@dataclass(frozen=True, slots=True)
class Source:
    """Where the model is. max_positions: longest text it knows, if it says so. quantization: its method, or empty."""

    folder: Path
    adapter: Path | None
    max_positions: int | None
    quantization: str


def find_source(config: RunConfig, bundle: TokenizerBundle) -> Source:
    """Find, download and check the folders of a run. Raises ConfigError, ModelError for what only our engine loads."""
    backend = config.model.infer_backend
    if config.finetuning.stage == "rm":
        raise no_scores(backend)
    folder = fetch(config.model.model_name_or_path or "", config.hub, key="model_name_or_path")
    adapters = adapter_folders(config)
    if len(adapters) > 1:
        raise ConfigError(
            f"adapter_name_or_path: got {len(adapters)} adapters and {backend} takes one; merge the others with export"
        )
    if adapters and config.finetuning.finetuning_type != "lora":
        raise ConfigError(
            f"finetuning_type: {backend} reads LoRA adapters, got {config.finetuning.finetuning_type}; merge them "
            "with export first"
        )
    if bundle.added_tokens:
        raise ModelError(
            f"infer_backend: {backend} cannot add tokens, and {', '.join(bundle.added_tokens)} are not in "
            "the model's; export the model with its adapter first"
        )
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inner = facts.get("text_config") or facts
    quantization = (facts.get("quantization_config") or {}).get("quant_method", "")
    return Source(folder, adapters[0] if adapters else None, inner.get("max_position_embeddings"), str(quantization))


def refuse_options(options: GenerationOptions, backend: str) -> None:
    """Raise ConfigError for beam search; say that a length penalty has no effect without it."""
    if options.num_beams > 1:
        raise ConfigError(
            f"num_beams: {backend} has no beam search, got {options.num_beams}; set num_beams: 1, or infer_backend: "
            "huggingface"
        )
    if options.length_penalty != 1:
        notice(
            f"length_penalty: {options.length_penalty} has no effect, it belongs to beam search, which {backend} lacks"
        )


def no_scores(backend: str) -> ModelError:
    """What an engine without reward models answers."""
    return ModelError(
        f"infer_backend: {backend} runs models that answer and no reward models; set infer_backend: huggingface"
    )
