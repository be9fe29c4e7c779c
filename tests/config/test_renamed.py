"""Old and renamed keys keep working, with one notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.config import RunConfig, load_config
from llamafactory.config.catalog import options
from llamafactory.config.renamed import meant_keys, renamed_keys
from llamafactory.config.violation import value_of
from llamafactory.errors import ConfigError

BASE = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}


def load(**given: object) -> RunConfig:
    return load_config({**BASE, **given})


@pytest.mark.parametrize(
    ("old", "value", "key", "result"),
    [
        ("warmup_ratio", 0.1, "warmup_steps", 0.1),
        ("evaluation_strategy", "no", "eval_strategy", "no"),
        ("per_gpu_train_batch_size", 2, "per_device_train_batch_size", 2),
        ("no_cuda", True, "use_cpu", True),
        ("group_by_length", True, "train_sampling_strategy", "group_by_length"),
        ("adafactor", True, "optim", "adafactor"),
        ("gradient_checkpointing", False, "disable_gradient_checkpointing", True),
        ("gradient_checkpointing", True, "disable_gradient_checkpointing", False),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}, "use_reentrant_gc", False),
        ("torch_dtype", "bfloat16", "infer_dtype", "bfloat16"),
        ("use_cache", False, "use_kv_cache", False),
        ("use_liger_kernel", True, "enable_liger_kernel", True),
        ("compute_type", "bf16", "bf16", True),
        ("compute_type", "fp16", "fp16", True),
        ("compute_type", "purebf16", "pure_bf16", True),
        ("compute_type", "fp32", "bf16", False),
        ("new_special_tokens", "<a>,<b>", "add_special_tokens", ("<a>", "<b>")),
        ("quantization_method", "bitsandbytes", "quantization_method", "bnb"),
        ("infer_backend", "hf", "infer_backend", "huggingface"),
        ("stage", "orpo", "pref_loss", "orpo"),
        ("stage", "simpo", "stage", "dpo"),
        ("flash_attn", True, "flash_attn", "fa2"),
        ("flash_attn", False, "flash_attn", "disabled"),
        ("dpo_beta", 0.2, "pref_beta", 0.2),
        ("sft_packing", True, "packing", True),
        ("resume_lora_training", False, "create_new_adapter", True),
    ],
)
def test_old_key_means_the_new_one(old: str, value: object, key: str, result: object) -> None:
    config = load(**{old: value})
    assert value_of(config, key) == result
    assert any(old in notice for notice in config.notices)


@pytest.mark.parametrize("key", ["visual_inputs", "logging_dir", "local_rank", "fp16_backend", "use_mps_device"])
def test_dropped_key_is_named_with_its_reason(key: str) -> None:
    assert f"{key} has no effect: " in load(**{key: "1"}).notices[0]


@pytest.mark.parametrize(
    ("old", "value"),
    [("save_safetensors", True), ("split", "train"), ("past_index", -1), ("use_ipex", False), ("use_mca", False)],
)
def test_value_that_happens_anyway_is_accepted(old: str, value: object) -> None:
    assert "is what happens anyway" in load(**{old: value}).notices[0]


@pytest.mark.parametrize(
    ("old", "value", "advice"),
    [
        ("save_safetensors", False, "weights are always written as safetensors"),
        ("split", "test", "set split for each data set in dataset_info.json"),
        ("compute_type", "fp4", "use bf16, fp16 or pure_bf16"),
        ("use_mca", True, "not part of this project"),
        ("image_resolution", 512, "use image_max_pixels"),
        ("fsdp_min_num_params", 5, "min_num_params"),
        ("warmup_ratio", 20, "expected a share below 1; warmup_steps takes counts"),
        ("no_cuda", "maybe", "use_cpu: got 'maybe', expected true or false"),
        ("gradient_checkpointing", "sometimes", "expected true or false; use disable_gradient_checkpointing"),
        ("group_by_length", "perhaps", "known values are true, false"),
    ],
)
def test_value_without_a_meaning_is_an_error(old: str, value: object, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{old: value})
    assert advice in str(caught.value) and str(caught.value).count("\n") == 0


def test_all_old_names_of_a_file_make_one_notice(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("warmup_ratio: 0.1\nno_cuda: true\nvisual_inputs: true\n", encoding="utf-8")
    (notice,) = load_config([str(path), *(f"{key}={value}" for key, value in BASE.items())]).notices
    assert notice.startswith(f"{path}: old names were translated: warmup_ratio is now warmup_steps; ")
    assert "no_cuda" in notice and "visual_inputs" in notice


def test_current_names_make_no_notice() -> None:
    assert load(warmup_steps=0.1, flash_attn="sdpa", quantization_method="hqq").notices == ()


def test_old_and_new_name_with_different_values_are_a_conflict(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("use_kv_cache: true\nuse_cache: false\n", encoding="utf-8")
    words = [str(path), *(f"{key}={value}" for key, value in BASE.items())]
    assert load_config(words).compute.use_kv_cache is False
    path.write_text("pref_beta: 0.3\ndpo_beta: 0.2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run.yaml:2: pref_beta: got 0.2 here and 0.3 at .*run.yaml:1"):
        load_config(words)


def test_default_beside_an_old_name_is_no_conflict() -> None:
    assert load(warmup_steps=0, warmup_ratio=0.1).training.warmup_steps == 0.1
    assert load(warmup_ratio=0.0, warmup_steps=20).training.warmup_steps == 20


def test_argument_beats_an_old_name_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("warmup_ratio: 0.1\n", encoding="utf-8")
    words = [str(path), *(f"{key}={value}" for key, value in BASE.items()), "--warmup_steps", "7"]
    assert load_config(words).training.warmup_steps == 7


def test_table_leads_to_keys_that_exist() -> None:
    targets = {str(rule[verb]) for rule in renamed_keys().values() for verb in ("to", "invert") if verb in rule}
    for rule in renamed_keys().values():
        for meaning in rule.get("values", {}).values():  # type: ignore[attr-defined]
            targets |= set(meaning)
    assert targets | set(meant_keys().values()) <= set(options())
