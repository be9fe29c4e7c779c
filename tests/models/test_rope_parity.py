"""What was trained with scaled positions answers with the same positions, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from llamafactory.config import load_config
from llamafactory.config.artefact import RECIPE_FILE
from llamafactory.models.load import load_model
from llamafactory.models.save import save_model
from llamafactory.models.tokenizer import load_tokenizer

METHODS = ("linear", "dynamic", "yarn", "llama3")
LONG = 700  # tokens; the tiny model holds 512


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(40, 300, (1, LONG), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("finetuning_type", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_chat_from_the_folder(
    load, sgd_step, model_dir: Path, tmp_path: Path, ids, method: str, finetuning_type: str
) -> None:
    options = {
        "model_name_or_path": str(model_dir), "finetuning_type": finetuning_type, "rope_scaling": method,
        "cutoff_len": 1500,
    }  # fmt: skip
    loaded, bundle, _ = load(**options)
    model = loaded.model
    short = ids[:, :24]
    before = model(input_ids=short, labels=short).loss.item()
    sgd_step(model)
    for _ in range(3):
        loss = model(input_ids=short, labels=short).loss
        loss.backward()
        with torch.no_grad():
            for part in model.parameters():
                if part.grad is not None:
                    part -= 0.5 * part.grad
                    part.grad = None
    assert loss.item() < before
    save_model(model, bundle.tokenizer, tmp_path, record=loaded.record)
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump({**options, "stage": "sft", "do_train": True}), encoding="utf-8")
    config = load_config(str(tmp_path), command="chat")
    answering = load_model(config, load_tokenizer(config), trainable=False).model
    assert torch.allclose(logits(answering, ids), logits(model, ids), atol=1e-5)
    own = answering.config.rope_parameters
    assert own["rope_type"] == method and own["factor"] == 3.0
