"""torchao: weights rounded while loading, adapters on 8 bits, and training that knows how weights will be rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.small_training import logits, train

from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.models.load import LoadedModel
from llamafactory.models.quantization import quantization_of
from llamafactory.models.save import save_model

Load = Callable[..., tuple[LoadedModel, object, object]]


@pytest.fixture
def needs_torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (pip install 'llamafactory[torchao]')")


@pytest.mark.extra
@pytest.mark.usefixtures("needs_torchao")
def test_an_adapter_learns_on_8_bits_and_comes_back(load: Load, untied_dir: Path, tmp_path: Path) -> None:
    options = {"model_name_or_path": str(untied_dir), "quantization_method": "torchao", "quantization_bit": 8}
    loaded, bundle, _ = load(**options)
    assert quantization_of(loaded.model).describe() == "torchao 8-bit (int8)"
    layer = loaded.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    before = layer.weight.dequantize().clone()
    assert type(layer.weight).__name__ == "Int8Tensor"
    losses = train(loaded.model)
    assert losses[-1] < losses[0] - 0.1 and torch.equal(layer.weight.dequantize(), before)
    expected = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path / "adapter", record=loaded.record)
    again = load(trainable=False, adapter_name_or_path=(str(tmp_path / "adapter"),), **options)[0]
    assert torch.equal(logits(again.model), expected)


@pytest.mark.extra
@pytest.mark.usefixtures("needs_torchao")
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 1e-5), (4, 1e-5)])
def test_weights_trained_in_view_of_rounding_are_those_that_are_rounded(
    load: Load, untied_dir: Path, tmp_path: Path, bits: int, tolerance: float
) -> None:
    options = {"quantization_method": "torchao", "quantization_bit": bits}
    loaded, bundle, _ = load(
        model_name_or_path=str(untied_dir), finetuning_type="full", quantization_aware=True, **options
    )
    assert quantization_of(loaded.model) is None
    losses = train(loaded.model, learning_rate=1e-3)
    assert losses[-1] < losses[0] - 0.2
    expected = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path / "full", record=loaded.record)
    again = load(trainable=False, model_name_or_path=str(tmp_path / "full"), **options)[0]
    assert float((logits(again.model) - expected).abs().max()) < tolerance
    plain = load(trainable=False, model_name_or_path=str(tmp_path / "full"))[0]
    assert float((logits(plain.model) - expected).abs().max()) > 10 * tolerance


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"quantization_aware": True}, "only torchao rounds weights while they learn"),
        (
            {"quantization_aware": True, "quantization_bit": 8, "quantization_method": "torchao"},
            "quantization_aware.*it trains whole weights; set finetuning_type to full",
        ),
        ({"quantization_bit": 4, "quantization_method": "torchao"}, "adapters learn on torchao weights of 8 bits only"),
        ({"quantization_bit": 3, "quantization_method": "torchao"}, "torchao has 4 or 8 bits"),
        ({"quantization_bit": 7, "quantization_method": "hqq"}, "hqq has 1, 2, 3, 4, 5, 6 or 8 bits"),
        ({"quantization_bit": 4, "quantization_method": "eetq"}, "eetq has 8 bits"),
        ({"quantization_bit": 8, "quantization_method": "eetq"}, "PEFT knows the layers of the package eetq"),
        ({"quantization_bit": 4, "quantization_method": "gptq"}, "this format is only read from a checkpoint"),
        ({"quantization_bit": 4, "quantization_method": "hqq", "use_dora": True}, "DoRA reads bnb weights only"),
        ({"quantization_bit": 4, "quantization_method": "hqq", "finetuning_type": "loha"}, "PEFT has no such adapter"),
        ({"quantization_bit": 4, "quantization_method": "hqq", "fsdp": "full_shard"}, "packed weights cannot be shard"),
    ],
)
def test_impossible_combinations_are_told_at_the_start(keys: dict, words: str) -> None:
    run = {"model_name_or_path": "m", "stage": "sft", "do_train": True, "dataset": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match=words):
        load_config(run | {"finetuning_type": "lora", "template": "chatml"} | keys, command="train")
