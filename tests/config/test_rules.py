"""Settings that cannot stand together are refused with place, reason and cure; settings without effect are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory.config import load_config
from llamafactory.config.rules_memory import zero_stage
from llamafactory.errors import ConfigError

TRAIN: dict[str, object] = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}
FULL = {**TRAIN, "finetuning_type": "full"}
ZERO3 = {"deepspeed": {"zero_optimization": {"stage": 3}}}
PPO = {**TRAIN, "stage": "ppo", "reward_model": "r"}
EVAL = {"eval_strategy": "steps", "eval_steps": 10, "val_size": 0.1}

REFUSED: list[tuple[dict[str, object], str]] = [
    ({"dataset": "d", "do_train": True, "output_dir": "o"}, "model_name_or_path: (not set): the command 'train' needs"),
    ({"model_name_or_path": "m", "output_dir": "o"}, "do_train: false: there is nothing to do; set do_train"),
    ({**TRAIN, "output_dir": None}, "output_dir: (not set): the run has no folder to write to"),
    ({**TRAIN, "dataset": None}, "dataset: (not set) with do_train: true: there is nothing to train on"),
    (
        {**FULL, "adapter_name_or_path": "a"},
        "adapter_name_or_path: a with finetuning_type: full: this method has no adap",
    ),
    ({**TRAIN, "infer_backend": "vllm"}, "infer_backend: vllm: the command 'train' has one engine"),
    (
        {**TRAIN, "image_max_pixels": 100},
        "image_max_pixels: 100 with image_min_pixels: 1024: the largest area is below",
    ),
    ({**TRAIN, "video_min_pixels": 10**6}, "video_max_pixels: 65536 with video_min_pixels: 1000000"),
    ({**TRAIN, "do_eval": True}, "do_eval: true with eval_dataset: (not set): there is no evaluation data"),
    ({**TRAIN, "eval_strategy": "epoch"}, "eval_strategy: epoch with eval_dataset: (not set): there is no evaluation"),
    ({**TRAIN, "predict_with_generate": True}, "predict_with_generate: true with eval_dataset: (not set)"),
    ({**TRAIN, "val_size": 0.1, "eval_dataset": "e"}, "val_size: 0.1 with eval_dataset: e: evaluation data would come"),
    ({**TRAIN, "val_size": 1.5}, "val_size: 1.5: from 1 upwards it counts examples"),
    (
        {"model_name_or_path": "m", "do_eval": True, "output_dir": "o", "val_size": 5},
        "val_size: 5 with dataset: (not set",
    ),
    ({**TRAIN, "streaming": True}, "max_steps: -1 with streaming: true: a stream has no end; set max_steps"),
    ({**TRAIN, "streaming": True, "max_steps": 9, "max_samples": 5}, "max_samples: 5 with streaming: true"),
    ({**TRAIN, "streaming": True, "max_steps": 9, "val_size": 0.1}, "val_size: 0.1 with streaming: true"),
    (
        {**TRAIN, "streaming": True, "max_steps": 9, "tokenized_path": "/nowhere/at/all"},
        "tokenized_path: /nowhere/at/all",
    ),
    ({**TRAIN, "save_strategy": "best"}, "save_strategy: best with eval_strategy: no: the best weights are found by"),
    (
        {**TRAIN, **EVAL, "metric_for_best_model": "eval_accuracy"},
        "metric_for_best_model: eval_accuracy with compute_accuracy: false: accuracy is not measured",
    ),
    ({**TRAIN, "num_train_epochs": 0}, "num_train_epochs: 0 with max_steps: -1: the run would end without an update"),
    (
        {**TRAIN, "lr_scheduler_type": "reduce_lr_on_plateau"},
        "lr_scheduler_type: reduce_lr_on_plateau with eval_strategy: no: this schedule follows the evaluation loss",
    ),
    ({**TRAIN, "interleave_probs": "1.0"}, "interleave_probs: 1.0 with mix_strategy: concat"),
    (
        {**TRAIN, "dataset": "a,b", "interleave_probs": "1.0", "mix_strategy": "interleave_under"},
        "interleave_probs: 1.0 with dataset: a,b: 1 probabilities for 2 data sets; give one for each",
    ),
    (
        {**TRAIN, "eval_dataset": "a,b", "interleave_probs": "1.0", "mix_strategy": "interleave_under"},
        "interleave_probs: 1.0 with eval_dataset: a,b: 1 probabilities for 2 data sets",
    ),
    ({**TRAIN, "interleave_probs": "-1", "mix_strategy": "interleave_under"}, "probabilities are not negative"),
    (
        {**TRAIN, "stage": "pt", "train_on_prompt": True},
        "train_on_prompt: true with stage: pt: it only exists in stage sft",
    ),
    ({**TRAIN, "stage": "pt", "mask_history": True}, "mask_history: true with stage: pt"),
    ({**TRAIN, "stage": "pt", "neat_packing": True}, "neat_packing: true with stage: pt"),
    (
        {**TRAIN, "stage": "pt", "predict_with_generate": True, "val_size": 5},
        "predict_with_generate: true with stage: pt",
    ),
    ({**TRAIN, "mask_history": True, "train_on_prompt": True}, "mask_history: true with train_on_prompt: true"),
    ({**TRAIN, "stage": "dpo", "packing": True}, "packing: true with stage: dpo: only stages pt and sft pack"),
    ({**TRAIN, "neat_packing": True, "packing": False}, "neat_packing: true with packing: false"),
    (
        {**TRAIN, "do_predict": True, "val_size": 5},
        "do_predict: true with predict_with_generate: false: stage sft predicts",
    ),
    (
        {**TRAIN, "stage": "pt", "do_predict": True, "val_size": 5},
        "do_predict: true with stage: pt: plain text asks no",
    ),
    (
        {**TRAIN, "stage": "dpo", "do_predict": True, "val_size": 5, "fsdp": "full_shard"},
        "do_predict: true with fsdp: full_shard: answers need whole weights",
    ),
    (
        {**TRAIN, **EVAL, "predict_with_generate": True, **ZERO3},
        "predict_with_generate: true with deepspeed: ",
    ),
    (
        {**TRAIN, "predict_with_generate": True, "val_size": 5, "compute_accuracy": True},
        "compute_accuracy: true with predict_with_generate: true",
    ),
    ({**TRAIN, "use_dft_loss": True, "use_eaft_loss": True}, "use_dft_loss: true with use_eaft_loss: true: each one"),
    ({**TRAIN, "stage": "pt", "use_dft_loss": True}, "use_dft_loss: true with stage: pt: this loss only exists in"),
    (
        {**TRAIN, "stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1},
        "dpo_label_smoothing: 0.1 with pref_loss: ipo: only the losses sigmoid and robust are smoothed",
    ),
    (
        {**TRAIN, "stage": "dpo", "pref_loss": "kto_pair", "pref_bco_weight": 1},
        "pref_bco_weight: 1 with pref_loss: kto_pair: BCO is not mixed into kto_pair",
    ),
    (
        {**TRAIN, "stage": "dpo", "ref_model_adapters": "a"},
        "ref_model_adapters: a with ref_model: (not set): the adapters of a reference model need that model",
    ),
    (
        {**TRAIN, "stage": "orpo", "pref_bco_weight": 1},
        "pref_bco_weight: 1 with pref_loss: orpo: BCO compares with a ref",
    ),
    ({**PPO, "do_train": False, "do_eval": True, "val_size": 5}, "do_train: false with stage: ppo: ppo can only train"),
    ({**PPO, "reward_model": None}, "reward_model: (not set) with stage: ppo: ppo needs rewards"),
    ({**PPO, "shift_attn": True}, "shift_attn: true with stage: ppo"),
    ({**PPO, "finetuning_type": "full"}, "reward_model_type: lora with finetuning_type: full"),
    ({**PPO, "use_unsloth": True}, "reward_model_type: lora with use_unsloth: true"),
    (
        {**PPO, "report_to": "mlflow"},
        "report_to: mlflow with stage: ppo: ppo reports to none, tensorboard, trackio, wandb",
    ),
    ({**PPO, **EVAL, "load_best_model_at_end": True}, "load_best_model_at_end: true with stage: ppo"),
    (
        {**TRAIN, **EVAL, "load_best_model_at_end": True, "save_strategy": "epoch"},
        "eval_strategy: steps with save_strategy: epoch: every checkpoint needs an evaluation",
    ),
    ({**TRAIN, **EVAL, "load_best_model_at_end": True, "save_steps": 25}, "make save_steps a multiple of eval_steps"),
    ({**TRAIN, **EVAL, "load_best_model_at_end": True, "save_steps": 0.5}, "make save_steps a multiple of eval_steps"),
    (
        {**TRAIN, "early_stopping_steps": 3, "load_best_model_at_end": True, "save_strategy": "best"},
        "eval_strategy: no:",
    ),
    ({**TRAIN, **EVAL, "early_stopping_steps": 3}, "early_stopping_steps: 3 with load_best_model_at_end: false"),
    ({**FULL, "use_dora": True}, "use_dora: true with finetuning_type: full: it is a variant of lora"),
    ({**FULL, "loraplus_lr_ratio": 16}, "loraplus_lr_ratio: 16 with finetuning_type: full"),
    ({**TRAIN, "pissa_init": True, "quantization_bit": 4}, "pissa_init: true with quantization_bit: 4"),
    ({**TRAIN, "pissa_init": True, "stage": "dpo"}, "pissa_init: true with stage: dpo"),
    (
        {**TRAIN, "pissa_init": True, "lora_init": "olora"},
        "lora_init: olora with pissa_init: true: there is one start of LoRA; keep one of them",
    ),
    (
        {**TRAIN, "lora_init": "loftq", "pissa_convert": True},
        "lora_init: loftq with pissa_convert: true: a rounded base is no plain base; remove pissa_convert",
    ),
    ({**TRAIN, "pissa_init": True, "use_asft_loss": True}, "pissa_init: true with use_asft_loss: true: without its"),
    ({**PPO, "lora_init": "eva", "reward_model_type": "full"}, "lora_init: eva with stage: ppo: it looks at answers"),
    (
        {**TRAIN, "lora_target_parameters": "experts.down_proj", "lora_dropout": 0.1},
        "lora_target_parameters: experts.down_proj with lora_dropout: 0.1: adapters of fused weights have no dropout",
    ),
    (
        {**TRAIN, "lora_target_parameters": "experts.down_proj", "use_dora": True},
        "use_dora: true with lora_target_parameters: experts.down_proj: the lengths of fused weights cannot",
    ),
    (
        {**TRAIN, "finetuning_type": "adalora", "adalora_init_rank": 4},
        "adalora_init_rank: 4 with lora_rank: 8: ranks shrink from the first to the second; raise adalora_init_rank",
    ),
    (
        {**TRAIN, "finetuning_type": "adalora", "adalora_warmup_ratio": 0.7},
        "adalora_warmup_ratio: 0.7 with adalora_final_ratio: 0.3: no update is left in which ranks shrink",
    ),
    ({**FULL, "use_llama_pro": True}, "use_llama_pro: true with finetuning_type: full"),
    (
        {**TRAIN, "finetuning_type": "freeze", "freeze_trainable_layers": 0},
        "freeze_trainable_layers: 0 with finetuning_ty",
    ),
    (
        {**TRAIN, "finetuning_type": "oft", "oft_rank": 4},
        "oft_rank: 4 with oft_block_size: 32: one follows from the other",
    ),
    ({**TRAIN, "report_to": "trackio"}, "report_to: trackio with project: huggingface: trackio files runs under"),
    ({**TRAIN, "deepspeed": "no/such.json"}, "deepspeed: no/such.json: there is no such file"),
    ({**TRAIN, "bf16": True, "fp16": True}, "bf16: true with fp16: true: weights are computed in one format"),
    ({**TRAIN, "bf16": True, "pure_bf16": True}, "bf16: true with pure_bf16: true"),
    ({**TRAIN, "pure_bf16": True, **ZERO3}, "use bf16 instead of pure_bf16"),
    ({**TRAIN, "quantization_bit": 3}, "quantization_method: bnb with quantization_bit: 3: bnb has 4 or 8 bits"),
    ({**TRAIN, "quantization_bit": 4, "quantization_method": "gptq"}, "this format is only read from a checkpoint"),
    ({**FULL, "quantization_bit": 4}, "finetuning_type: full with quantization_bit: 4: quantized weights cannot learn"),
    ({**TRAIN, "quantization_bit": 4, "finetuning_type": "loha"}, "with finetuning_type: loha: PEFT has no such"),
    (
        {**TRAIN, "quantization_bit": 4, "adapter_name_or_path": "a,b"},
        "adapter_name_or_path: a,b with quantization_bit",
    ),
    (
        {**TRAIN, "quantization_bit": 4, "adapter_name_or_path": "a", "create_new_adapter": True},
        "create_new_adapter: true with quantization_bit: 4",
    ),
    ({**TRAIN, "quantization_bit": 8, "quantization_method": "hqq", "use_dora": True}, "DoRA reads bnb weights only"),
    (
        {**TRAIN, "quantization_bit": 8, "lora_init": "loftq"},
        "lora_init: loftq with quantization_bit: 8: LoftQ corrects 4-bit weights of bnb",
    ),
    (
        {**TRAIN, "quantization_bit": 8, "fsdp": True},
        "quantization_bit: 8 with fsdp: true: 8-bit weights cannot be sharded",
    ),
    (
        {**TRAIN, "stage": "dpo", "ref_model": "m", "ref_model_adapters": "a,b", "ref_model_quantization_bit": 4},
        "ref_model_adapters: a,b with ref_model_quantization_bit: 4: adapters cannot be merged",
    ),
    ({**TRAIN, "quantization_device_map": "auto"}, "quantization_device_map: auto with do_train: true"),
    ({**FULL, "use_galore": True, "use_badam": True}, "use_galore: true with use_badam: true: there is one optimizer"),
    ({**TRAIN, "use_galore": True}, "use_galore: true with finetuning_type: lora: adapters are small already"),
    ({**FULL, "use_apollo": True, **ZERO3}, "use_apollo: true with deepspeed: "),
    ({**FULL, "use_muon": True, "fsdp": "full_shard"}, "use_muon: true with fsdp: full_shard: the update needs whole"),
    (
        {**FULL, "use_muon": True, "optim": "sgd"},
        "use_muon: true with optim: sgd: this optimizer has an update rule of",
    ),
    (
        {**FULL, "use_galore": True, "optim": "sgd"},
        "use_galore: true with optim: sgd: GaLore projects the gradients of",
    ),
    ({**FULL, "use_muon": True, "optim": "lomo"}, "optim: lomo with use_muon: true: there is one optimizer; keep one"),
    ({**TRAIN, "optim": "apollo_adamw"}, "optim: apollo_adamw with finetuning_type: lora: adapters are small already"),
    ({**FULL, "optim": "lomo", "gradient_accumulation_steps": 2}, "optim: lomo with gradient_accumulation_steps: 2"),
    (
        {**FULL, "use_galore": True, "galore_layerwise": True, "max_grad_norm": 1.0},
        "galore_layerwise: true with max_grad_norm: 1: the norm of all gradients is known only after the updates",
    ),
    ({**FULL, "optim": "adalomo", "fp16": True}, "optim: adalomo with fp16: true: scaled gradients cannot be used"),
    (
        {**FULL, "use_galore": True, "galore_layerwise": True, "gradient_accumulation_steps": 2},
        "galore_layerwise: true with gradient_accumulation_steps: 2: every backward pass is an update",
    ),
    ({**TRAIN, "fp8": True, "quantization_bit": 4}, "fp8: true with quantization_bit: 4"),
    ({**TRAIN, "fp8": True, "stage": "dpo"}, "fp8: true with stage: dpo"),
    ({**TRAIN, "pissa_init": True, **ZERO3}, "pissa_init: true with deepspeed: "),
    ({**TRAIN, "use_unsloth": True, **ZERO3}, "use_unsloth: true with deepspeed: "),
    (
        {**TRAIN, "use_unsloth": True, "lora_target_parameters": "mlp.experts.gate_up_proj"},
        "use_unsloth: true with lora_target_parameters: mlp.experts.gate_up_proj",
    ),
    (
        {**TRAIN, "use_unsloth": True, "quantization_bit": 4, "quantization_type": "fp4"},
        "use_unsloth: true with quantization_type: fp4",
    ),
    (
        {**TRAIN, "use_unsloth": True, "quantization_bit": 4, "double_quantization": False},
        "use_unsloth: true with double_quantization: false",
    ),
    ({**TRAIN, "use_unsloth": True, "flash_attn": "fa2"}, "use_unsloth: true with flash_attn: fa2"),
    (
        {**TRAIN, "quantization_bit": 4, "quantization_method": "hqq", **ZERO3},
        "quantization_method: hqq with deepspeed: ",
    ),
    (
        {**TRAIN, "use_unsloth": True, "finetuning_type": "oft", "oft_rank": 0},
        "use_unsloth: true with finetuning_type: oft",
    ),
    ({**TRAIN, "use_unsloth": True, "adapter_name_or_path": "a,b"}, "adapter_name_or_path: a,b with use_unsloth: true"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words[:60] for _, words in REFUSED])
def test_combination_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(given)
    lines = [line for line in str(caught.value).splitlines() if words in line]
    assert lines, str(caught.value)
    assert "; " in lines[0], "a refusal ends with its cure"


CHAT = {"model_name_or_path": "m"}
OTHER_COMMANDS: list[tuple[str, dict[str, object], str]] = [
    ("chat", {}, "model_name_or_path: (not set): the command 'chat' needs a model"),
    ("chat", {**CHAT, "infer_backend": "vllm", "stage": "rm"}, "stage: rm with infer_backend: vllm"),
    ("chat", {**CHAT, "infer_backend": "vllm", "quantization_bit": 4}, "quantization_bit: 4 with infer_backend: vllm"),
    ("chat", {**CHAT, "infer_backend": "vllm", "rope_scaling": "yarn"}, "rope_scaling: yarn with infer_backend: vllm"),
    ("chat", {**CHAT, "infer_backend": "vllm", "adapter_name_or_path": "a,b"}, "a,b with infer_backend: vllm"),
    ("chat", {**CHAT, "quantization_device_map": "auto", "quantization_bit": 8}, "only 4-bit bnb can be spread"),
    ("export", CHAT, "export_dir: (not set): the command 'export' needs a target"),
    (
        "export",
        {**CHAT, "export_dir": "e", "quantization_bit": 4, "adapter_name_or_path": "a"},
        "adapter_name_or_path: a with quantization_bit: 4: adapters cannot be merged into quantized weights; remove",
    ),
    (
        "export",
        {**CHAT, "export_dir": "e", "export_quantization_bit": 4, "adapter_name_or_path": "a"},
        "adapter_name_or_path: a with export_quantization_bit: 4",
    ),
    ("export", {**CHAT, "export_dir": "e", "export_quantization_bit": 4}, "quantizing needs calibration text"),
    ("eval", CHAT, "task: (not set): the command 'eval' needs a benchmark"),
    (
        "eval",
        {**CHAT, "task": "mmlu_test", "save_dir": "."},
        "save_dir: .: the folder exists already; choose a new one",
    ),
    ("data", CHAT, "dataset: (not set): there is nothing to look at"),
    ("predict", {**CHAT, "output_dir": "o"}, "eval_dataset: (not set): there is no data to make predictions for"),
    ("predict", {**CHAT, "eval_dataset": "d"}, "output_dir: (not set): the run has no folder to write to"),
    (
        "predict",
        {**CHAT, "eval_dataset": "d", "output_dir": "o", "infer_backend": "vllm", "stage": "dpo"},
        "stage: dpo with infer_backend: vllm",
    ),
]


@pytest.mark.parametrize(
    ("command", "given", "words"), OTHER_COMMANDS, ids=[words[:60] for *_, words in OTHER_COMMANDS]
)
def test_combination_is_refused_by_other_commands(command: str, given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(given, command)
    assert words in str(caught.value)


ACCEPTED: list[dict[str, object]] = [
    TRAIN,
    {**TRAIN, **EVAL, "load_best_model_at_end": True, "save_steps": 20, "early_stopping_steps": 2},
    {**TRAIN, "val_size": 10, "do_eval": True},
    {**TRAIN, "streaming": True, "max_steps": 10, "val_size": 10},
    {**TRAIN, "use_asft_loss": True},
    {**TRAIN, **EVAL, "stage": "rm", "load_best_model_at_end": True, "do_predict": True},
    {**TRAIN, "quantization_bit": 4, "adapter_name_or_path": "a"},
    {**TRAIN, "quantization_bit": 4, "resize_vocab": True},
    {**TRAIN, "quantization_bit": 4, "lora_init": "loftq"},
    {**TRAIN, "quantization_bit": 4, "fsdp": True},
    {**TRAIN, "quantization_bit": 3, "quantization_method": "hqq"},
    {**FULL, "use_galore": True, "galore_layerwise": True},
    {**FULL, "use_galore": True, "optim": "paged_adamw_8bit", "gradient_accumulation_steps": 4},
    {**FULL, "optim": "lomo", "max_grad_norm": 0.0},
    {**FULL, "optim": "apollo_adamw", "optim_args": "rank=8", "optim_target_modules": "mlp"},
    {**TRAIN, "adapter_name_or_path": "a,b", "create_new_adapter": True},
    {**TRAIN, "dataset": "a,b", "interleave_probs": "0.5,0.5", "mix_strategy": "interleave_over"},
    {"model_name_or_path": "m", "dataset": "d", "tokenized_path": "t"},
    {"model_name_or_path": "m", "tokenized_path": "t", "do_train": True, "output_dir": "o"},
    {**PPO, "reward_model_type": "full", "finetuning_type": "full"},
    {**TRAIN, "stage": "dpo", "pref_bco_weight": 1.0},
    {**TRAIN, "report_to": "trackio", "project": "p"},
    {**TRAIN, "pissa_init": True, "stage": "dpo", "ref_model": "r"},
    {**TRAIN, "pissa_init": True, "lora_init": "pissa"},
    {**TRAIN, "lora_init": "lora_ga", "lora_init_batches": 4, "pissa_convert": True},
    {**TRAIN, "finetuning_type": "freeze", "freeze_trainable_layers": -2, "use_llama_pro": False},
]


@pytest.mark.parametrize("given", ACCEPTED, ids=str)
def test_combination_is_accepted(given: dict[str, object]) -> None:
    assert load_config(given).notices == ()


def test_place_is_that_of_a_given_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: m\noutput_dir: o\ndo_train: true\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^\S+run.yaml:3: dataset: \(not set\) with do_train: true"):
        load_config(path)


def test_several_processes_cannot_update_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**FULL, "use_galore": True, "galore_layerwise": True}
    assert load_config(given).galore.galore_layerwise
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="galore_layerwise: true: several processes cannot exchange gradients"):
        load_config(given)
    with pytest.raises(ConfigError, match="use_badam: true: the weights that learn change during the run; use one"):
        load_config({**FULL, "use_badam": True})
    assert load_config({**FULL, "use_muon": True}).optimizer.use_muon


def test_sharding_by_the_launcher_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="use_muon: true: the update needs whole weights, and FSDP shards them"):
        load_config({**FULL, "use_muon": True})


def test_zero_stage_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "z3.json"
    path.write_text(json.dumps(ZERO3["deepspeed"]), encoding="utf-8")
    assert zero_stage(load_config({**TRAIN, "deepspeed": str(path)})) == 3
    assert zero_stage(load_config({**TRAIN, "deepspeed": {}})) == 0
    assert zero_stage(load_config(TRAIN)) is None
    with pytest.raises(ConfigError, match="it needs whole weights"):
        load_config({**TRAIN, "deepspeed": str(path), "pissa_init": True})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"finetuning_type": "full", "lora_rank": 4}, "lora_rank: no effect unless finetuning_type is lora"),
        ({"freeze_trainable_layers": 4}, "freeze_trainable_layers: no effect unless finetuning_type is freeze"),
        ({"pref_beta": 0.5, "kto_chosen_weight": 2}, "pref_beta, kto_chosen_weight: no effect in this stage"),
        ({"galore_rank": 4}, "galore_rank: no effect unless use_galore is true"),
        ({"export_dir": "x", "export_size": 2}, "export_dir, export_size: no effect in this command"),
        ({"optim_target_modules": "mlp"}, "optim_target_modules: no effect unless optim is a galore_ or apollo_ name"),
        ({"use_muon": True, "optim_args": "a=1"}, "optim_args: no effect because the optimizer is not chosen by optim"),
        (
            {"finetuning_type": "full", "use_badam": True, "badam_update_ratio": 0.5},
            "badam_update_ratio: no effect unless badam_mode is ratio",
        ),
        (
            {"finetuning_type": "full", "use_badam": True, "badam_mode": "ratio", "badam_start_block": 1},
            "badam_start_block: no effect unless badam_mode is layer",
        ),
        ({"lora_init": "olora", "adapter_name_or_path": "a"}, "lora_init: no effect because the given adapter goes on"),
        ({"lora_init_batches": 4}, "lora_init_batches: no effect unless lora_init is eva or lora_ga"),
        ({"adalora_init_rank": 9}, "adalora_init_rank: no effect unless finetuning_type is adalora"),
        ({"buffer_size": 4}, "buffer_size: no effect unless streaming is true"),
        ({"max_steps": 4, "num_train_epochs": 2}, "num_train_epochs: no effect because max_steps decides"),
        ({"max_steps": 0}, "max_steps: no effect unless above 0: num_train_epochs decides"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 4}, "warmup_steps: no effect because this lr_scheduler"),
        ({"eval_steps": 4}, "eval_steps: no effect unless eval_strategy is steps"),
        ({"stage": "orpo", "ref_model": "r"}, "ref_model: no effect because this loss has no reference model"),
        ({"use_v1_kernels": True}, "use_v1_kernels: true has no effect: there is no such kernel set here"),
        ({"export_legacy_format": True}, "export_legacy_format: true has no effect: weights are always written"),
    ],
)
def test_key_without_effect_is_named(given: dict[str, object], words: str) -> None:
    assert any(words in notice for notice in load_config({**TRAIN, **given}).notices)


def test_default_value_without_effect_is_not_worth_a_word() -> None:
    assert load_config({**FULL, "lora_rank": 8}).notices == ()
    assert load_config({"model_name_or_path": "m", "lora_rank": 4, "pref_beta": 0.5}, "chat").notices == ()


def test_how_a_model_was_trained_does_not_matter_to_a_quantizer_that_answers() -> None:
    options = {"model_name_or_path": "m", "quantization_method": "hqq", "quantization_bit": 4}
    for method in ("lora", "full", "freeze"):
        load_config({**options, "finetuning_type": method}, "chat")
    with pytest.raises(ConfigError, match="quantized weights cannot learn"):
        load_config({**FULL, **options})
