"""Block expansion: the same answers, then only the new blocks learn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from llamafactory.cli import main
from llamafactory.errors import ModelError
from llamafactory.models import expand
from llamafactory.models.adapters.freeze import chosen_layers
from llamafactory.models.expand import insert_blocks


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits


@pytest.mark.parametrize("count", [1, 2])
def test_answers_stay_the_same(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    folder = tmp_path / "pro"
    assert main(["expand", str(model_dir), f"num_expand={count}", f"output_dir={folder}"]) == 0
    assert f"freeze_trainable_layers: {count}" in capsys.readouterr().out
    assert torch.equal(logits(folder), logits(model_dir))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == len(model.model.layers) == 2 + count
    silent = {
        index for index, layer in enumerate(model.model.layers)
        if not layer.mlp.down_proj.weight.any() and not layer.self_attn.o_proj.weight.any()
    }  # fmt: skip
    assert silent == chosen_layers(2 + count, count, llama_pro=True)
    text = torch.arange(40, 60)[None]
    assert model.generate(text, max_new_tokens=4, do_sample=False).shape[1] == 24


def test_a_model_of_no_known_kind_is_one_sentence(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model_dir, damaged)
    (damaged / "config.json").write_text(json.dumps({"model_type": "nothing"}), encoding="utf-8")
    assert main(["expand", str(damaged), "num_expand=1", f"output_dir={tmp_path / 'pro'}"]) == 2
    assert "the model in it cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expand: needs a model, num_expand and output_dir"),
        (["num_expand=3", "output_dir={new}"], "num_expand: got 3, but the model has 2 layers"),
        (["num_expand=x", "output_dir={new}"], "num_expand: got 'x', expected a whole number above 0"),
        (["num_expnd=1", "output_dir={new}"], "there is no option 'num_expnd'"),
        (["num_expand=1", "output_dir={old}"], "is in use"),
    ],
)
def test_mistakes(model_dir: Path, tmp_path: Path, capsys, words: list[str], message: str) -> None:
    given = [word.format(new=tmp_path / "pro", old=model_dir) for word in words]
    assert main(["expand", str(model_dir), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pro").exists()


def test_blocks_that_cannot_be_made_neutral_are_refused(model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    with pytest.raises(ModelError, match=r"GPT2Block has no weight called o_proj or out_proj or wo.*blocks like Llama"):
        insert_blocks(gpt2, 1)
    monkeypatch.setattr(expand, "_ATTENTION_OUT", ("q_proj",))
    with pytest.raises(ModelError, match="the added blocks change the answers of this llama; not written"):
        expand.expand_model(str(model_dir), 1, tmp_path / "pro")
    assert not (tmp_path / "pro").exists()
