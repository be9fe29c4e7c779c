"""Value heads: where they live, where they are stored, which positions they read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamafactory.errors import CheckpointError, LlamaFactoryError, ModelError
from llamafactory.models.load import load_model
from llamafactory.models.record import fingerprint
from llamafactory.models.safetensors_file import folder_shapes
from llamafactory.models.save import save_model
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.models.value_head import (
    VALUE_HEAD_FILE,
    ValueHead,
    attach_value_head,
    last_positions,
    read_value_head,
    required_value_head,
    sequence_values,
    value_head_of,
)


@pytest.fixture
def load_with_head(make_config):
    def run(*, trainable: bool = True, head: str = "value", **options: object):
        config = make_config(**options)
        bundle = load_tokenizer(config)
        return load_model(config, bundle, trainable=trainable, head=head), bundle

    return run


def write_head(folder: Path, weight: Tensor, bias: float = 0.5) -> None:
    save_file(
        {"v_head.summary.weight": weight[None], "v_head.summary.bias": torch.tensor([bias])}, folder / VALUE_HEAD_FILE
    )


def test_the_head_is_a_dot_product_in_full_precision() -> None:
    head = ValueHead(3)
    with torch.no_grad():
        head.summary.weight.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
        head.summary.bias.fill_(0.25)
    hidden = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.0, 2.0009765625]])
    assert head(hidden).tolist() == [2.25, pytest.approx(-1.2509765625, abs=1e-7)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(hidden)[1].item() == pytest.approx(-1.2509765625, abs=1e-7)
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_a_new_head_follows_the_seed_and_its_published_spread(load_with_head, model_dir: Path) -> None:
    heads = [
        required_value_head(load_with_head(model_name_or_path=str(model_dir), seed=seed)[0].model) for seed in (1, 1, 2)
    ]
    first, again, other = (head.summary.weight for head in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert heads[0].summary.bias.item() == 0
    torch.manual_seed(0)
    assert ValueHead(4096).summary.weight.std().item() == pytest.approx(4097**-0.5, rel=0.05)


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_the_head_learns_and_the_projection_does_not(load_with_head, untied_dir: Path, method: str) -> None:
    loaded, _ = load_with_head(model_name_or_path=str(untied_dir), finetuning_type=method, pure_bf16=True)
    learning = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert {"v_head.summary.weight"} == {name for name in learning if "v_head" in name} < learning
    assert not any("lm_head" in name for name in learning)
    assert required_value_head(loaded.model).summary.weight.dtype == torch.float32
    assert "value head: new, random weights" in loaded.notes


def test_a_policy_with_a_head_keeps_its_projection(load_with_head, untied_dir: Path) -> None:
    loaded, _ = load_with_head(model_name_or_path=str(untied_dir), finetuning_type="full", head="both")
    assert loaded.model.lm_head.weight.requires_grad
    assert value_head_of(loaded.model) is not None


def test_an_embedding_shared_with_the_projection_goes_on_learning(load_with_head, model_dir: Path) -> None:
    loaded, _ = load_with_head(model_name_or_path=str(model_dir), finetuning_type="full")
    assert loaded.model.get_input_embeddings().weight.requires_grad


def test_training_the_unused_projection_is_noticed(load_with_head, untied_dir: Path, caplog) -> None:
    load_with_head(
        model_name_or_path=str(untied_dir), finetuning_type="freeze", freeze_extra_modules=("lm_head",),
    )  # fmt: skip
    assert "freeze_extra_modules: lm_head has no effect" in caplog.text


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_saved_folder_holds_the_head_apart_and_gives_it_back(
    load_with_head, untied_dir: Path, tmp_path: Path, method: str
) -> None:
    loaded, bundle = load_with_head(model_name_or_path=str(untied_dir), finetuning_type=method)
    saved = tmp_path / "saved"
    save_model(loaded.model, bundle.tokenizer, saved, record=loaded.record)
    assert {name: value.shape for name, value in load_file(saved / VALUE_HEAD_FILE).items()} == {
        "v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,),
    }  # fmt: skip
    (saved / VALUE_HEAD_FILE).rename(tmp_path / VALUE_HEAD_FILE)
    assert not any("v_head" in name for name in folder_shapes(saved))
    (tmp_path / VALUE_HEAD_FILE).rename(saved / VALUE_HEAD_FILE)
    where = {"adapter_name_or_path": (str(saved),)} if method == "lora" else {}
    base = untied_dir if method == "lora" else saved
    again, _ = load_with_head(model_name_or_path=str(base), trainable=False, finetuning_type=method, **where)
    ids = {"input_ids": torch.arange(40, 72).reshape(2, 16)}
    last = last_positions(ids)
    expected = sequence_values(loaded.model.eval(), ids, last)[0]
    assert torch.equal(sequence_values(again.model, ids, last)[0], expected)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())


def test_the_adapters_head_goes_before_the_bases(load_with_head, untied_dir: Path, tmp_path: Path) -> None:
    write_head(untied_dir, torch.full((32,), 1.0))
    loaded, bundle = load_with_head(model_name_or_path=str(untied_dir))
    assert required_value_head(loaded.model).summary.weight.tolist() == [[1.0] * 32]
    save_model(loaded.model, bundle.tokenizer, tmp_path / "adapter", record=loaded.record)
    write_head(tmp_path / "adapter", torch.full((32,), 2.0))
    options = {"model_name_or_path": str(untied_dir), "adapter_name_or_path": (str(tmp_path / "adapter"),)}
    loaded, _ = load_with_head(trainable=False, **options)
    assert required_value_head(loaded.model).summary.weight.tolist() == [[2.0] * 32]
    (tmp_path / "adapter" / VALUE_HEAD_FILE).unlink()
    loaded, _ = load_with_head(trainable=False, **options)
    assert required_value_head(loaded.model).summary.weight.tolist() == [[1.0] * 32]


def test_a_head_beside_the_weights_leaves_the_base_the_same(untied_dir: Path) -> None:
    before = fingerprint(untied_dir)
    write_head(untied_dir, torch.ones(32))
    assert fingerprint(untied_dir) == before


def test_a_missing_head_is_told_at_inference(load_with_head, model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"has no value_head.safetensors.*not a reward model.*stage: rm"):
        load_with_head(model_name_or_path=str(model_dir), trainable=False)


def test_a_head_of_another_width_is_told(load_with_head, untied_dir: Path) -> None:
    write_head(untied_dir, torch.ones(16))
    with pytest.raises(ModelError, match=r"needs a value head with .*\[1, 32\].*found .*\[1, 16\]"):
        load_with_head(model_name_or_path=str(untied_dir))


def test_a_damaged_head_is_told_by_name(load_with_head, untied_dir: Path) -> None:
    (untied_dir / VALUE_HEAD_FILE).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(CheckpointError, match=VALUE_HEAD_FILE):
        load_with_head(model_name_or_path=str(untied_dir))


def test_a_pickled_head_is_opened_only_when_allowed(tmp_path: Path) -> None:
    torch.save({"v_head.summary.weight": torch.ones(1, 4), "v_head.summary.bias": torch.ones(1)}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "value_head.bin")
    with pytest.raises(ModelError, match="allow_pickle_weights"):
        read_value_head(tmp_path)
    stored = read_value_head(tmp_path, allow_pickle=True)
    assert stored is not None and stored.state["v_head.summary.bias"].tolist() == [1.0]
    (tmp_path / "value_head.bin").write_bytes(b"nothing")
    with pytest.raises(LlamaFactoryError, match="expected pickled tensors of a value head"):
        read_value_head(tmp_path, allow_pickle=True)


def test_dropout_only_where_the_model_asks_for_it(untied_dir: Path, load_with_head) -> None:
    loaded, _ = load_with_head(model_name_or_path=str(untied_dir))
    assert required_value_head(loaded.model).dropout.p == 0
    file = untied_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"summary_dropout_prob": 0.25}))
    loaded, _ = load_with_head(model_name_or_path=str(untied_dir))
    assert required_value_head(loaded.model).dropout.p == 0.25


def test_last_positions_in_every_layout() -> None:
    ids = torch.zeros(3, 4, dtype=torch.long)
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_positions({"input_ids": ids, "attention_mask": right}).tolist() == [1, 7, 8]
    assert last_positions({"input_ids": ids, "attention_mask": right.flip(1)}).tolist() == [3, 7, 11]
    assert last_positions({"input_ids": ids}).tolist() == [3, 7, 11]
    flat = {"input_ids": torch.zeros(1, 6, dtype=torch.long), "position_ids": torch.tensor([[0, 1, 0, 0, 1, 2]])}
    assert last_positions(flat).tolist() == [1, 2, 5]


def test_a_model_without_a_head_is_told() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear has no value head"):
        required_value_head(model)


def test_a_model_without_output_embedding_is_told(untied_dir: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(ModelError, match="no linear output embedding"):
        attach_value_head(AutoModel.from_pretrained(untied_dir), trainable=True)
