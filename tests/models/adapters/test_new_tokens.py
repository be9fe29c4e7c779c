"""Adapters beside embeddings that grew: the new rows learn, and the folder alone brings them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.models.merge import merge_adapters, observe, verify_merge
from llamafactory.models.save import save_model

TOKENS = {"resize_vocab": True, "add_tokens": "<new_a>,<new_b>"}


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_new_rows_learn_and_come_back(load, sgd_step, model_dir: Path, tmp_path: Path, method: str) -> None:
    given = {"model_name_or_path": str(model_dir), "finetuning_type": method, "oft_block_size": 8}
    loaded, bundle, _ = load(**given, **TOKENS)
    before = sgd_step(loaded.model)
    moved = {name for name, value in loaded.model.named_parameters() if not torch.equal(value, before[name])}
    assert any("embed_tokens.modules_to_save" in name for name in moved)
    assert all(".default" in name for name in moved)
    new = torch.tensor([bundle.tokenizer.convert_tokens_to_ids(["<new_a>", "<new_b>", "a"])])
    with torch.no_grad():
        after = loaded.model.eval()(input_ids=new).logits
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    again, _, _ = load(**given, trainable=False, merge=False, adapter_name_or_path=str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.model.eval()(input_ids=new).logits, after)
    probe = observe(again.model, new)
    save_model(merge_adapters(again.model), bundle.tokenizer, tmp_path / "m", record=again.record)
    assert verify_merge(probe, tmp_path / "m").difference < 1e-4


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_tied_copies_stay_tied_when_the_adapter_goes_on_learning(
    load, sgd_step, model_dir: Path, tmp_path: Path, method: str
) -> None:
    given = {"model_name_or_path": str(model_dir), "finetuning_type": method, "oft_block_size": 8}
    loaded, bundle, _ = load(**given, additional_target="embed_tokens")
    sgd_step(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    resumed, _, _ = load(**given, adapter_name_or_path=str(tmp_path))
    for model in (loaded.model, resumed.model):
        sgd_step(model)
        base = model.get_base_model()
        assert torch.equal(base.get_input_embeddings().weight, base.get_output_embeddings().weight)
