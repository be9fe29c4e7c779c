"""Merging: the result is base plus adapter, and every way it can fail is noticed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamafactory.errors import ModelError
from llamafactory.models.merge import MergeProbe, merge_adapters, observe, verify_merge
from llamafactory.models.save import SaveOptions, save_model

IDS = torch.arange(40, 72).reshape(2, 16)


def export(
    load, sgd_step, base: Path, folder: Path, *, dtype: str = "float32", shard_gb: float = 5.0, **options: object
) -> MergeProbe:
    """Train an adapter on `base`, merge it into `folder`, return what was observed before."""
    loaded, bundle, _ = load(model_name_or_path=str(base), **options)
    for _ in range(3):
        sgd_step(loaded.model, 2.0)
    save_model(loaded.model, bundle.tokenizer, folder / "adapter", record=loaded.record)
    adapter = str(folder / "adapter")
    fresh, bundle, _ = load(
        trainable=False, merge=False, model_name_or_path=str(base), adapter_name_or_path=adapter, infer_dtype=dtype
    )
    probe = observe(fresh.model, IDS)
    merged = merge_adapters(fresh.model)
    save_options = SaveOptions(max_shard_gb=shard_gb)
    save_model(merged, bundle.tokenizer, folder / "merged", record=fresh.record, options=save_options)
    return probe


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_target": "q_proj,embed_tokens,lm_head"}]
)
def test_merge_is_verified(load, sgd_step, untied_dir: Path, tmp_path: Path, dtype: str, options: dict) -> None:
    probe = export(load, sgd_step, untied_dir, tmp_path, dtype=dtype, **options)
    report = verify_merge(probe, tmp_path / "merged")
    assert report.difference <= report.tolerance
    assert "merge verified" in report.line()
    assert {name for name in report.changed if "layers" in name} <= set(probe.targets)
    base = AutoModelForCausalLM.from_pretrained(untied_dir)
    with torch.no_grad():
        base_logits = base(input_ids=IDS).logits
    assert float((base_logits - probe.logits).abs().max() / probe.logits.abs().max()) > 0.1


@pytest.mark.parametrize("shard_gb", [20e3 / 1e9, 158e3 / 1e9, 1.0])
def test_shards_below_equal_and_above_the_base(
    load, sgd_step, model_dir: Path, tmp_path: Path, shard_gb: float
) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path, shard_gb=shard_gb)
    assert len(verify_merge(probe, tmp_path / "merged").changed) == 14


def test_the_base_in_place_of_the_merge(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path)
    shutil.copy(model_dir / "model.safetensors", tmp_path / "merged")
    with pytest.raises(ModelError, match=r"14 tensors that the adapter changes are still those of the base"):
        verify_merge(probe, tmp_path / "merged")


def test_a_stray_change(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path)
    file = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 tensors changed that the adapter does not touch, such as model.norm.weight"
    ):
        verify_merge(probe, tmp_path / "merged")


def test_other_answers(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path)
    file = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: t * 1.5 if "q_proj" in name else t for name, t in tensors.items()}, file, metadata={"format": "pt"}
    )
    with pytest.raises(
        ModelError, match=r"answers differently from base plus adapter \(logits off by .* allowed 1e-04 in"
    ):
        verify_merge(probe, tmp_path / "merged")


def test_another_size(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path)
    cut = dataclasses.replace(probe, logits=probe.logits[:, :, :-1])
    with pytest.raises(ModelError, match="gives logits of shape"):
        verify_merge(cut, tmp_path / "merged")


def test_unreadable_result(load, sgd_step, model_dir: Path, tmp_path: Path) -> None:
    probe = export(load, sgd_step, model_dir, tmp_path)
    (tmp_path / "merged" / "config.json").unlink()
    with pytest.raises(ModelError, match="the model in it cannot be read"):
        verify_merge(probe, tmp_path / "merged")


def test_untrained_adapter_changes_nothing(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir))
    probe = observe(loaded.model, IDS)
    assert not any(probe.targets.values())
    save_model(merge_adapters(loaded.model), bundle.tokenizer, tmp_path, record=loaded.record)
    assert verify_merge(probe, tmp_path).changed == frozenset()


def test_quantized_bases_are_refused(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir))
    loaded.model.get_base_model().is_quantized = True
    for action in (merge_adapters, lambda model: observe(model, IDS)):
        with pytest.raises(ModelError, match="cannot be merged into a quantized base"):
            action(loaded.model)


def test_an_update_of_a_shared_weight_is_refused(load, model_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    get_peft_model(model, LoraConfig(target_modules=["embed_tokens"])).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"shares its weight with the output head.*additional_target: embed_tokens"):
        load(trainable=False, model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path))


def test_broken_values_are_refused(load, model_dir: Path) -> None:
    loaded, _, _ = load(model_name_or_path=str(model_dir))
    with torch.no_grad():
        next(p for name, p in loaded.model.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"could not be merged .*broken values"):
        merge_adapters(loaded.model)


def test_a_plain_model_stays(load, model_dir: Path) -> None:
    loaded, _, _ = load(trainable=False, model_name_or_path=str(model_dir))
    assert merge_adapters(loaded.model) is loaded.model
