"""Run folders as training leaves them, made in a second: a real adapter with random weights, recipe, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from llamafactory.config import load_config
from llamafactory.inference.loading import load_renderer
from llamafactory.models.load import load_model
from llamafactory.models.save import SaveOptions, save_model


def write_run(folder: Path, base: Path, *, strength: float = 0.5, **options: object) -> Path:
    """Write what `train` would leave for these options, with adapter weights drawn at random; returns `folder`."""
    keys = {
        "model_name_or_path": str(base),
        "template": "chatml",
        "dataset": "unused",
        "output_dir": str(folder),
        "do_train": True,
        "finetuning_type": "lora",
        **options,
    }
    config = load_config(keys, command="train")
    bundle, renderer = load_renderer(config)
    loaded = load_model(config, bundle, trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += strength * torch.randn(parameter.shape, generator=generator)
    options_ = SaveOptions(stop_ids=tuple(renderer.stop_ids), chat_template=renderer.to_jinja())
    save_model(loaded.model, bundle.tokenizer, folder, record=loaded.record, options=options_)
    recipe = yaml.safe_dump(config.to_yaml_dict(redact=True), sort_keys=False)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return folder
