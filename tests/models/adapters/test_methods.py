"""Adapter methods and starts: they train alone, reload to the bit, and merge into what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.models.conftest import write_gemma3
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
)

from llamafactory.errors import CheckpointError, ConfigError, ModelError
from llamafactory.models.merge import merge_adapters, observe, verify_merge
from llamafactory.models.nf4 import round_to_nf4
from llamafactory.models.save import SaveOptions, save_model
from llamafactory.models.start import START_FILE
from llamafactory.training.weight_files import load_weights

IDS = torch.arange(40, 72).reshape(2, 16)
METHODS = [
    {"finetuning_type": "oft", "oft_block_size": 8},
    {"finetuning_type": "oft", "oft_block_size": 0, "oft_rank": 4, "oft_target": "q_proj,v_proj"},
    {"finetuning_type": "vera"},
    {"finetuning_type": "ia3"},
    {"finetuning_type": "loha"},
    {"finetuning_type": "lokr"},
    {"finetuning_type": "lora", "use_dora": True},
    {"finetuning_type": "lora", "lora_init": "gaussian"},
    {"finetuning_type": "lora", "lora_init": "olora"},
    {"finetuning_type": "lora", "lora_init": "loftq"},
    {"finetuning_type": "lora", "pissa_init": True, "pissa_iter": -1},
    {"finetuning_type": "lora", "pissa_init": True, "pissa_iter": 4, "use_rslora": True},
    {"finetuning_type": "lora", "pissa_init": True, "use_dora": True},
]


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def fit(model: torch.nn.Module, steps: int = 6) -> list[float]:
    """Train with Adam on one batch; the loss before every step and after the last."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps + 1):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        if len(losses) <= steps:
            optimizer.step()
    return losses


@pytest.mark.parametrize("options", METHODS, ids=lambda options: "-".join(map(str, options.values())))
def test_trains_reloads_and_merges(load, model_dir: Path, tmp_path: Path, options: dict) -> None:
    given = {"model_name_or_path": str(model_dir), **options}
    loaded, bundle, _ = load(**given)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    losses = fit(loaded.model)
    assert losses[-1] < losses[0]
    moved = {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".default" in name and "base_layer" not in name for name in moved)
    after = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path / "a", record=loaded.record)
    again = {**given, "adapter_name_or_path": str(tmp_path / "a")}
    resumed, _, _ = load(**again)
    assert torch.equal(logits(resumed.model), after)
    chat, bundle, _ = load(trainable=False, merge=False, **again)
    assert torch.equal(logits(chat.model), after)
    probe = observe(chat.model, IDS)
    save_model(merge_adapters(chat.model), bundle.tokenizer, tmp_path / "m", record=chat.record)
    assert verify_merge(probe, tmp_path / "m").difference < 1e-4


@pytest.mark.parametrize("options", METHODS[-6:], ids=lambda options: "-".join(map(str, options.values())))
def test_a_start_changes_no_answer(load, model_dir: Path, options: dict) -> None:
    plain = logits(AutoModelForCausalLM.from_pretrained(model_dir))
    loaded, _, _ = load(model_name_or_path=str(model_dir), **options)
    tolerance = 0.1 if options.get("lora_init") == "loftq" else 1e-5
    assert (logits(loaded.model) - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_converted_pissa_adapter_fits_the_plain_base(load, model_dir: Path, tmp_path: Path, variant: dict) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), pissa_init=True, pissa_iter=4, lora_rank=4, **variant)
    fit(loaded.model)
    after = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record, options=SaveOptions(plain_adapter=True))
    foreign = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), str(tmp_path))
    assert foreign.peft_config["default"].r == 8
    assert (logits(foreign) - after).abs().max() < 1e-5 * after.abs().max()
    ours, _, _ = load(trainable=False, model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))
    assert (logits(ours.model) - after).abs().max() < 1e-5 * after.abs().max()


def test_checkpoints_of_pissa_go_on_exactly(load, model_dir: Path, tmp_path: Path) -> None:
    given = {"model_name_or_path": str(model_dir), "pissa_init": True, "pissa_iter": 4}
    loaded, bundle, _ = load(**given)
    fit(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    second, _, _ = load(**given)
    load_weights(second.model, tmp_path)
    assert torch.equal(logits(second.model), logits(loaded.model))
    other, _, _ = load(**{**given, "pissa_iter": -1})
    with pytest.raises(CheckpointError, match=r"started from other values.*adapter_name_or_path instead"):
        load_weights(other.model, tmp_path)


def test_nf4_rounds_to_the_nearest_and_stays() -> None:
    weight = torch.randn(10, 33, generator=torch.Generator().manual_seed(1))
    rounded = round_to_nf4(weight)
    assert torch.equal(round_to_nf4(rounded), rounded)
    assert (rounded - weight).norm() < 0.12 * weight.norm()
    assert rounded.flatten()[:64].unique().numel() <= 16


def test_loftq_is_nearer_to_the_weights_than_rounding(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir), lora_init="loftq")
    weight = AutoModelForCausalLM.from_pretrained(model_dir).model.layers[0].mlp.up_proj.weight
    layer = loaded.model.get_base_model().model.layers[0].mlp.up_proj
    with torch.no_grad():
        rest = weight - layer.get_base_layer().weight - layer.get_delta_weight("default")
        assert rest.norm() < 0.8 * (weight - round_to_nf4(weight)).norm()


COMMON = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 4, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4},
}


@pytest.fixture
def moe_dir(request: pytest.FixtureRequest, tmp_path: Path, tokenizer) -> Path:
    family = getattr(request, "param", "qwen3_moe")
    folder = tmp_path / "moe"
    torch.manual_seed(5)
    config = CONFIG_MAPPING[family](vocab_size=len(tokenizer), **COMMON, **MIXTURES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("moe_dir", MIXTURES, indirect=True)
def test_fused_experts_get_adapters(load, moe_dir: Path, tmp_path: Path) -> None:
    targets = "mlp.experts.gate_up_proj,mlp.experts.down_proj"
    given = {"model_name_or_path": str(moe_dir), "lora_target": "q_proj", "lora_target_parameters": targets}
    loaded, bundle, _ = load(**given)
    losses = fit(loaded.model)
    assert losses[-1] < losses[0]
    assert all("lora_" in name for name, p in loaded.model.named_parameters() if p.requires_grad)
    assert any("experts" in name for name, p in loaded.model.named_parameters() if p.requires_grad)
    after = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path / "a", record=loaded.record)
    chat, bundle, _ = load(
        trainable=False, merge=False, model_name_or_path=str(moe_dir), adapter_name_or_path=str(tmp_path / "a")
    )
    assert torch.equal(logits(chat.model), after)
    probe = observe(chat.model, IDS)
    save_model(merge_adapters(chat.model), bundle.tokenizer, tmp_path / "m", record=chat.record)
    report = verify_merge(probe, tmp_path / "m")
    assert report.difference < 1e-4
    assert any("experts" in name for name in report.changed)


def test_experts_left_out_are_told(load, moe_dir: Path, capsys, caplog) -> None:
    load(model_name_or_path=str(moe_dir))
    told = capsys.readouterr().err + caplog.text
    assert "does not reach the fused expert weights" in told and "lora_target_parameters: mlp.experts.down_proj" in told
    with pytest.raises(ConfigError, match=r"no 3-D weight 'mlp.experts.down_prj' .*did you mean"):
        load(model_name_or_path=str(moe_dir), lora_target_parameters="mlp.experts.down_prj")


def test_a_bad_oft_target_names_its_option(load, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"oft_target: the model has no module 'q_prj'"):
        load(model_name_or_path=str(model_dir), finetuning_type="oft", oft_target="q_prj")


def test_a_start_of_another_program_is_refused(load, model_dir: Path, tmp_path: Path) -> None:
    given = {"model_name_or_path": str(model_dir), "lora_init": "olora"}
    loaded, bundle, _ = load(**given)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    save_file(load_file(tmp_path / START_FILE), tmp_path / START_FILE, metadata={"lora_init": "nonsense"})
    with pytest.raises(ModelError, match=r"names no known start \('nonsense'\); take the file as it was written"):
        load(**given, adapter_name_or_path=str(tmp_path))


def test_a_rounded_base_has_no_plain_adapter(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), lora_init="loftq")
    with pytest.raises(ModelError, match="a start that rounds the base is no plain adapter; remove pissa_convert"):
        save_model(
            loaded.model, bundle.tokenizer, tmp_path, record=loaded.record, options=SaveOptions(plain_adapter=True)
        )


def test_a_target_of_which_nothing_learns_is_told(load, model_dir: Path, tmp_path: Path, capsys, caplog) -> None:
    write_gemma3(tmp_path, model_dir)
    load(model_name_or_path=str(tmp_path), lora_target="fc1,q_proj")
    told = capsys.readouterr().err + caplog.text
    assert "lora_target: fc1 has no effect, all modules of that name stay frozen" in told and "q_proj has" not in told
