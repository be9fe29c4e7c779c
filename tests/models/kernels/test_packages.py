"""Kernels of other packages: what is missing is told, what is called is checked, and a GPU runs them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.training.models import examples, tiny_model, with_lora
from tests.training.runs import logged, make_trainer, run_config
from transformers import GPT2Config, GPT2LMHeadModel

from llamafactory.config import load_config
from llamafactory.config.rules_parts import KERNEL
from llamafactory.errors import ConfigError, MissingPackageError, ModelError
from llamafactory.facts import read_facts
from llamafactory.models.kernels import KERNELS, check_kernels, unsloth
from llamafactory.models.kernels.fp8 import apply_fp8, convertible
from llamafactory.models.kernels.liger import LOSSES, apply_liger

RUN = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LIGER = r"'llamafactory\[liger\]'"
PACKAGES = [
    (
        {"enable_liger_kernel": True},
        "liger_kernel",
        "enable_liger_kernel: true",
        r"'llamafactory\[liger\]'",
        "a Triton kernel",
    ),
    ({"use_unsloth": True}, "unsloth", "use_unsloth: true", "unsloth", "unsloth"),
    ({"fp8": True, "pure_bf16": True}, "torchao", "fp8: true", r"'llamafactory\[fp8\]'", "a matrix product in FP8"),
]


def test_every_file_states_its_contract() -> None:
    assert set(KERNELS.names()) == set(read_facts(KERNELS.package))
    for name in KERNELS.names():
        assert read_facts(KERNELS.package)[name] == KERNELS.load(name).FACTS
    assert KERNELS.key == KERNEL


@pytest.mark.parametrize(("options", "package", "asked", "install", "what"), PACKAGES)
def test_missing_package_and_missing_gpu(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], package: str, asked: str, install: str, what: str
) -> None:
    config = load_config({**RUN, **options})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    sentence = f"{asked} needs the package '{package}', which is not installed; install it with: pip install {install}$"
    with pytest.raises(MissingPackageError, match=sentence):
        check_kernels(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    key = asked.split(":")[0]
    with pytest.raises(
        ConfigError, match=f"{key}: {what} needs an NVIDIA GPU, and this run uses the CPU; remove {key}"
    ):
        check_kernels(config)


def test_fp8_needs_a_card_that_has_it_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"fp8: true with precision fp32: .* set bf16: true, or pure_bf16: true"):
        check_kernels(load_config({**RUN, "fp8": True}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Old Card")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    with pytest.raises(ConfigError, match=r"needs compute capability 8\.9, and Old Card has 8\.0; remove fp8"):
        check_kernels(load_config({**RUN, "fp8": True, "pure_bf16": True}))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    check_kernels(load_config({**RUN, "fp8": True, "pure_bf16": True}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use_unsloth": True, "finetuning_type": "freeze"}, "use_unsloth: true with finetuning_type: freeze"),
        ({"use_unsloth": True, "rope_scaling": "yarn"}, "use_unsloth: true with rope_scaling: yarn"),
        ({"use_unsloth": True, "use_dora": True}, "use_unsloth: true with use_dora: true"),
        ({"use_unsloth": True, "enable_liger_kernel": True}, "use_unsloth: true: unsloth brings its own kernels"),
        ({"fp8": True, "stage": "dpo"}, "fp8: true with stage: dpo: only stages pt and sft compute in FP8"),
        ({"fp8": True, "use_unsloth": True}, "fp8: true with use_unsloth: true"),
    ],
)
def test_what_they_cannot_stand_beside(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config({**RUN, **options})


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """A module of another package, with just what we call."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:depth]))
        module.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


def test_liger_is_called_without_its_losses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[dict[str, Any]] = []
    fake_package(
        monkeypatch,
        "liger_kernel.transformers.monkey_patch",
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None},
        _apply_liger_kernel_to_instance=lambda **given: calls.append(given),
    )
    model = tiny_model()
    note = apply_liger(model, {"rope": False, "fused_linear_cross_entropy": True})
    assert note == "liger kernels: those for llama, without its losses"
    assert calls == [{"model": model, "rope": False, **dict.fromkeys(LOSSES, False)}]
    assert apply_liger(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1))) is None
    assert "enable_liger_kernel has no effect: liger-kernel has no kernels for gpt2" in caplog.text
    assert len(calls) == 1


def test_unsloth_is_called_as_documented(
    load, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for the package with a plain model, so that the way through our loader is walked to its end."""
    calls: dict[str, dict[str, Any]] = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**given: Any) -> tuple[object, None]:
            calls["from_pretrained"] = given
            return tiny_model(vocab_size=600), None

        @staticmethod
        def get_peft_model(model: Any, **given: Any) -> object:
            calls["get_peft_model"] = given
            return with_lora(model, r=given["r"], target_modules=given["target_modules"])

    fake_package(monkeypatch, "unsloth", FastLanguageModel=FastLanguageModel)
    monkeypatch.setattr(unsloth, "check", lambda config: None)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    loaded, _, _ = load(model_name_or_path=str(model_dir), use_unsloth=True, lora_rank=4, cutoff_len=64)
    given = calls["from_pretrained"]
    assert given["model_name"] == str(model_dir) and given["max_seq_length"] == 64
    assert given["load_in_4bit"] is given["load_in_8bit"] is given["full_finetuning"] is False
    assert given["use_gradient_checkpointing"] == "unsloth"
    assert calls["get_peft_model"]["r"] == 4 and "q_proj" in calls["get_peft_model"]["target_modules"]
    assert not any(note.startswith("gradient checkpointing") for note in loaded.notes)


def test_unsloth_that_cannot_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: Any) -> None:
        raise NotImplementedError("no such family")

    fake_package(monkeypatch, "unsloth", FastLanguageModel=types.SimpleNamespace(from_pretrained=refuse))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    with pytest.raises(ModelError, match=r"unsloth cannot load .* \(no such family\); remove use_unsloth"):
        unsloth.load_unsloth(load_config({**RUN, "use_unsloth": True}), tmp_path, torch.bfloat16)


def test_layers_that_compute_in_fp8() -> None:
    names = convertible(tiny_model())
    assert "model.layers.0.self_attn.q_proj" in names and "lm_head" not in names and len(names) == 14
    assert "model.layers.0.self_attn.k_proj" not in convertible(tiny_model(num_key_value_heads=1))
    assert not any("lora_" in name for name in convertible(with_lora(tiny_model(), r=16)))
    assert len(convertible(with_lora(tiny_model(), r=16))) == 14


@pytest.mark.parametrize("lora", [False, True])
def test_fp8_rounds_little_and_learns(tmp_path: Path, lora: bool) -> None:
    """Emulated: the products are rounded as on a GPU, and multiplied in fp32."""
    pytest.importorskip("torchao")
    model = tiny_model(vocab_size=128).to(torch.bfloat16)
    wrapped = with_lora(model) if lora else model
    ids = torch.arange(3, 51)[None]
    with torch.no_grad():
        before = wrapped(input_ids=ids).logits.float()
    note = apply_fp8(wrapped, emulate=True)
    assert note.startswith("fp8: 14 linear layers multiply in FP8")
    with torch.no_grad():
        after = wrapped(input_ids=ids).logits.float()
    assert 0 < (after - before).norm() < 0.1 * before.norm()
    trainer = make_trainer(run_config(tmp_path, max_steps=8, pure_bf16=True), wrapped, train=examples([23, 30]))
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < losses[0]
    if not lora:
        model.save_pretrained(tmp_path / "saved")
        again = type(model).from_pretrained(tmp_path / "saved")
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_weights_of_a_sharded_fp8_run_are_prepared_for_the_gather() -> None:
    pytest.importorskip("torchao")
    model = tiny_model().to(torch.bfloat16)
    assert apply_fp8(model, sharded_gather=True, emulate=True).endswith("with one scale per tensor")
    assert hasattr(model.model.layers[0].mlp.up_proj.weight, "fsdp_pre_all_gather")


@pytest.mark.gpu
@NEEDS_GPU
def test_fp8_run_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    model = tiny_model(hidden_size=64).to("cuda", torch.bfloat16)
    apply_fp8(model)
    trainer = make_trainer(
        run_config(tmp_path, max_steps=6, pure_bf16=True), model, train=examples([23, 9, 30, 14] * 2)
    )
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < losses[0]


@pytest.mark.gpu
@NEEDS_GPU
def test_liger_run_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    rows = examples([23, 9, 30, 14] * 2)
    found = []
    for kernels in (False, True):
        model = tiny_model(hidden_size=64).to("cuda")
        if kernels:
            assert apply_liger(model)
        trainer = make_trainer(run_config(tmp_path / str(kernels), max_steps=6), model, train=rows)
        trainer.train()
        found.append([loss for _, loss in logged(trainer, "loss")])
    assert found[1] == pytest.approx(found[0], rel=1e-2) and found[1][-1] < found[1][0]


@pytest.mark.gpu
@NEEDS_GPU
def test_unsloth_run_on_a_gpu(load, model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("unsloth")
    loaded, _, _ = load(model_name_or_path=str(model_dir), use_unsloth=True, lora_rank=4, cutoff_len=64)
    trainer = make_trainer(run_config(tmp_path, max_steps=6), loaded.model, train=examples([23, 9, 30, 14] * 2))
    trainer.train()
    losses = [loss for _, loss in logged(trainer, "loss")]
    assert losses[-1] < losses[0]
    assert isinstance(loaded.model.peft_config["default"], LoraConfig)
