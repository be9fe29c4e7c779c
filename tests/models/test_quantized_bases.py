"""Quantizers beside bitsandbytes: HQQ while loading, and checkpoints that were stored quantized."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_tokenizer
from tests.models.small_training import IDS, logits, train
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from llamafactory.errors import ConfigError, MissingPackageError, ModelError
from llamafactory.models.inspect import count_parameters
from llamafactory.models.load import LoadedModel
from llamafactory.models.quantization import quantization_of
from llamafactory.models.quantization._blocks import dequantize_blocks
from llamafactory.models.save import save_model
from llamafactory.models.starter import build_model

Load = Callable[..., tuple[LoadedModel, object, object]]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama (hidden 64), input and output embeddings apart."""
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer().save_pretrained(folder)
    build_model(
        make_tokenizer(), hidden_size=64, num_layers=2, max_length=512, tie_word_embeddings=False
    ).save_pretrained(folder)
    return folder


def frozen(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}


def declare(folder: Path, **settings: object) -> None:
    """Write into config.json that the weights of `folder` are quantized."""
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"quantization_config": settings}), encoding="utf-8")


def copy_without_weights(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())


# HQQ


@pytest.mark.extra
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1])
def test_an_adapter_learns_on_hqq_weights_and_comes_back(load: Load, base_dir: Path, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("hqq")
    options = {"model_name_or_path": str(base_dir), "quantization_method": "hqq", "quantization_bit": bits}
    loaded, bundle, _ = load(**options)
    base = loaded.model.get_base_model()
    assert quantization_of(loaded.model).describe() == f"hqq {bits}-bit (groups of 64)"
    layer = base.model.layers[1].mlp.down_proj.base_layer
    assert type(layer).__name__ == "HQQLinear" and not hasattr(layer, "linear_layer")
    assert layer.W_q.nbytes == 64 * 192 * {6: 8, 5: 8, 3: 3.5}.get(bits, bits) / 8
    assert type(base.lm_head) is torch.nn.Linear and base.lm_head.weight.dtype == torch.float32
    before = frozen(loaded.model)
    losses = train(loaded.model)
    after = frozen(loaded.model)
    assert losses[-1] < losses[0] - 0.3 and all(torch.equal(before[name], after[name]) for name in before)
    expected = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    again = load(trainable=False, adapter_name_or_path=(str(tmp_path),), **options)[0]
    assert torch.equal(logits(again.model), expected)
    resumed = load(adapter_name_or_path=(str(tmp_path),), **options)[0]
    assert train(resumed.model, 1)[0] < losses[-1]


@pytest.mark.extra
def test_fewer_hqq_bits_round_more(load: Load, base_dir: Path) -> None:
    pytest.importorskip("hqq")
    common = {"model_name_or_path": str(base_dir), "trainable": False}
    plain = logits(load(**common)[0].model)
    errors = [
        float((logits(load(**common, quantization_method="hqq", quantization_bit=bits)[0].model) - plain).norm())
        for bits in (8, 4, 2)
    ]
    packed = load(**common, quantization_method="hqq", quantization_bit=4)[0].model
    assert count_parameters(packed) == count_parameters(load(**common)[0].model)
    assert 0 < errors[0] < errors[1] / 4 < errors[2] / 8


@pytest.mark.extra
def test_hqq_computes_in_the_format_of_training(load: Load, base_dir: Path) -> None:
    pytest.importorskip("hqq")
    loaded = load(
        model_name_or_path=str(base_dir), quantization_method="hqq", quantization_bit=4, bf16=True,
        upcast_layernorm=True, lora_target=("q_proj", "down_proj"),
    )[0]  # fmt: skip
    layer = loaded.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.compute_dtype == layer.meta["scale"].dtype == torch.bfloat16
    losses = train(loaded.model, bf16=True)
    assert losses[-1] < losses[0] - 0.1


# FP8


def test_blocks_are_multiplied_by_their_scales() -> None:
    codes = torch.arange(20.0).reshape(4, 5).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    want = codes.float() * torch.tensor([[1, 1, 1, 10, 10]] * 3 + [[100, 100, 100, 1000, 1000]])
    assert torch.equal(dequantize_blocks(codes, scales, (3, 3), torch.float32), want)
    exponents = torch.tensor([[127, 128], [126, 130]], dtype=torch.uint8)
    half = codes.float() * torch.tensor([[1, 1, 1, 2, 2]] * 3 + [[0.5, 0.5, 0.5, 8, 8]])
    assert torch.equal(dequantize_blocks(codes, exponents, (3, 3), torch.float32), half)
    assert torch.equal(dequantize_blocks(codes, torch.tensor(2.0), None, torch.float32), codes.float() * 2)
    with pytest.raises(ValueError, match="do not fit blocks of 2 x 3"):
        dequantize_blocks(codes, scales[:1], (2, 3), torch.float32)


def rounded(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """FP8 codes and block scales of a matrix."""
    rows, columns = weight.shape
    scales = torch.stack(
        [
            torch.stack([weight[i : i + block, j : j + block].abs().max() / 448 for j in range(0, columns, block)])
            for i in range(0, rows, block)
        ]
    )
    spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return (weight / spread).to(torch.float8_e4m3fn), scales


def store_fp8(folder: Path, *, is_stored: Callable[[str], bool]) -> dict[str, Tensor]:
    """Turn the weights of a model folder into FP8 ones; returns what they are worth."""
    file = folder / "model.safetensors"
    stored, worth = {}, {}
    for name, weight in load_file(file).items():
        weight = weight.clone()  # the file is overwritten below
        stored[name] = worth[name] = weight
        if is_stored(name):
            weight = weight * torch.linspace(1, 50, weight.shape[0])[:, None]  # blocks with different scales
            stored[name], stored[f"{name}_scale_inv"] = rounded(weight, 128)
            worth[name] = dequantize_blocks(stored[name], stored[f"{name}_scale_inv"], (128, 128), torch.float32)
    save_file(stored, file, {"format": "pt"})
    declare(folder, quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic", fmt="e4m3")
    return worth


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A Llama whose sizes, 192 and 320, are no multiples of the block: one that transformers reads wrongly or not."""
    folder = tmp_path_factory.mktemp("fp8")
    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(make_tokenizer()), hidden_size=192, intermediate_size=320, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder, store_fp8(folder, is_stored=lambda name: "proj" in name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_weights_become_plain_ones(
    load: Load, fp8: tuple[Path, dict[str, Tensor]], tmp_path: Path, dtype: str
) -> None:
    folder, worth = fp8
    loaded, bundle, _ = load(trainable=False, model_name_or_path=str(folder), infer_dtype=dtype)
    state = loaded.model.state_dict()
    assert set(state) == set(worth)
    for name, weight in worth.items():
        assert state[name].dtype == getattr(torch, dtype) and torch.equal(state[name], weight.to(state[name].dtype)), (
            name
        )
    assert quantization_of(loaded.model) is None and any("fp8 weights are read as plain" in n for n in loaded.notes)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not getattr(saved, "is_quantized", False) and saved.dtype == getattr(torch, dtype)
    assert torch.equal(logits(saved), logits(loaded.model))


def test_an_fp8_checkpoint_is_trained_in_full(load: Load, fp8: tuple[Path, dict[str, Tensor]]) -> None:
    loaded = load(model_name_or_path=str(fp8[0]), finetuning_type="full")[0]
    losses = train(loaded.model, 3, 1e-3)
    assert losses[-1] < losses[0] - 0.2


def test_fp8_experts_are_fused_after_they_became_plain(load: Load, tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    make_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(make_tokenizer()), hidden_size=160, moe_intermediate_size=96, intermediate_size=96,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=3,
            num_experts_per_tok=2, max_position_embeddings=128,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    worth = store_fp8(tmp_path, is_stored=lambda name: "proj" in name)
    state = load(trainable=False, model_name_or_path=str(tmp_path))[0].model.state_dict()
    experts = "model.layers.0.mlp.experts"
    for number in range(3):
        gate, up = (worth[f"{experts}.{number}.{part}_proj.weight"] for part in ("gate", "up"))
        assert torch.equal(state[f"{experts}.gate_up_proj"][number], torch.cat([gate, up]))
        assert torch.equal(state[f"{experts}.down_proj"][number], worth[f"{experts}.{number}.down_proj.weight"])


# MXFP4


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_experts_become_plain_and_are_saved_plain(load: Load, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    config = GptOssConfig(
        vocab_size=len(make_tokenizer()), hidden_size=64, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_local_experts=2, num_experts_per_tok=1,
        layer_types=["full_attention"], max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = {name: weight.clone() for name, weight in load_file(file).items()}
    worth = dict(stored)
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        count, wide, high = stored.pop(name).shape
        blocks = torch.randint(0, 256, (count, high, wide // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, (count, high, wide // 32), dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
        values = values * torch.exp2(scales.float() - 127)[..., None]
        worth[name] = values.reshape(count, high, wide).transpose(1, 2)
    save_file(stored, file, {"format": "pt"})
    declare(tmp_path, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    loaded, bundle, _ = load(model_name_or_path=str(tmp_path), finetuning_type="full")
    state = {name: weight.detach().clone() for name, weight in loaded.model.state_dict().items()}
    assert set(state) == set(worth) and all(torch.equal(state[name], worth[name]) for name in worth)
    assert quantization_of(loaded.model) is None
    losses = train(loaded.model, 3, 1e-3)
    assert losses[-1] < losses[0]
    save_model(loaded.model, bundle.tokenizer, tmp_path / "saved", record=loaded.record)
    assert torch.equal(logits(load(trainable=False, model_name_or_path=str(tmp_path / "saved"))[0].model),
                       logits(loaded.model))  # fmt: skip


# stored by other programs


@pytest.mark.extra
def test_compressed_tensors_become_plain(load: Load, base_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="not installed (pip install compressed-tensors)")
    stored, worth = {}, {}
    for name, weight in load_file(base_dir / "model.safetensors").items():
        stored[name] = worth[name] = weight
        if "proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 448
            stored |= {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}
            worth[name] = stored[name].float() * scale
    copy_without_weights(base_dir, tmp_path)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    declare(
        tmp_path, quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed",
        ignore=["lm_head"], config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
    )  # fmt: skip
    state = load(trainable=False, model_name_or_path=str(tmp_path))[0].model.state_dict()
    assert set(state) == set(worth) and all(torch.equal(state[name], worth[name]) for name in worth)


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed_awq(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [rows, columns] -> eight in an int32 [rows, columns / 8], in the order of AWQ's kernels."""
    parts = codes.reshape(codes.shape[0], -1, 8)[..., AWQ_ORDER]
    whole = (parts << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


@pytest.mark.extra
@pytest.mark.slow
def test_an_awq_checkpoint_answers_as_its_arithmetic_and_carries_an_adapter(
    load: Load, base_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gptqmodel", reason="not installed (pip install 'llamafactory[gptq]')")
    stored, worth = {}, {}
    torch.manual_seed(0)
    for name, weight in load_file(base_dir / "model.safetensors").items():
        stored[name] = worth[name] = weight
        if "proj" in name:
            high, wide = stored.pop(name).shape
            codes, zeros = torch.randint(0, 16, (wide, high)), torch.randint(6, 10, (wide // 32, high))
            scales = (torch.rand(wide // 32, high) * 0.01 + 0.005).half()
            stem = name.removesuffix("weight")
            stored |= {f"{stem}qweight": packed_awq(codes), f"{stem}qzeros": packed_awq(zeros), f"{stem}scales": scales}
            spread = [part.repeat_interleave(32, 0) for part in (zeros, scales.float())]
            worth[name] = ((codes - spread[0]) * spread[1]).T.contiguous()
    copy_without_weights(base_dir, tmp_path)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    plain = AutoModelForCausalLM.from_pretrained(base_dir)
    plain.load_state_dict(worth)
    declare(tmp_path, quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")
    loaded = load(trainable=False, model_name_or_path=str(tmp_path))[0]
    assert quantization_of(loaded.model).describe() == "awq 4-bit (groups of 32)"
    want = logits(plain)
    assert float((logits(loaded.model) - want).abs().max() / want.abs().max()) < 0.03  # the kernel computes in bf16
    losses = train(load(model_name_or_path=str(tmp_path))[0].model)
    assert losses[-1] < losses[0] - 0.3


# refusals


@pytest.mark.parametrize(
    ("method", "settings", "command"),
    [
        ("gptq", {"bits": 4}, r"pip install 'llamafactory\[gptq\]'"),
        ("awq", {"bits": 4}, r"pip install 'llamafactory\[gptq\]'"),
        ("aqlm", {}, r"pip install 'aqlm\[gpu,cpu\]'"),
        ("compressed-tensors", {"format": "float-quantized"}, "pip install compressed-tensors"),
        ("torchao", {}, r"pip install 'llamafactory\[torchao\]'"),
    ],
)
def test_a_checkpoint_whose_package_is_missing_names_the_command(
    load: Load, base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, settings: dict,
    command: str,
) -> None:  # fmt: skip
    copy_without_weights(base_dir, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(base_dir / "model.safetensors")
    declare(tmp_path, quant_method=method, **settings)
    monkeypatch.setattr("llamafactory.parts.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=command):
        load(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "options", "error", "words"),
    [
        ({"quant_method": "aqlm"}, {}, ModelError, "adapters on it cannot be trained on a CPU"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, {}, ModelError, "stores its experts in 4-bit floats"),
        ({"quant_method": "gptq", "bits": 4}, {"finetuning_type": "full"}, ModelError, "full cannot train it"),
        ({"quant_method": "gptq", "bits": 4}, {"use_dora": True}, ModelError, "DoRA cannot read gptq weights"),
        ({"quant_method": "awq", "bits": 4}, {"finetuning_type": "loha"}, ModelError, "no such adapter for awq"),
        ({"quant_method": "quark"}, {}, ModelError, r"stored quantized \(quark\), which this version cannot read"),
        (None, {"quantization_method": "eetq", "quantization_bit": 8}, ConfigError, "has kernels for CUDA GPUs only"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_cpu_or_a_stored_format_refuses(
    load: Load, base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict | None, options: dict,
    error: type, words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("llamafactory.parts.importlib.util.find_spec", lambda name: object())  # nothing is missing
    copy_without_weights(base_dir, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(base_dir / "model.safetensors")
    if settings is not None:
        declare(tmp_path, **settings)
    with pytest.raises(error, match=words):
        load(model_name_or_path=str(tmp_path), **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_eetq_answers_on_a_gpu(load: Load, base_dir: Path) -> None:
    pytest.importorskip("kernels", reason="kernels is not installed (pip install kernels)")
    common = {"model_name_or_path": str(base_dir), "trainable": False, "infer_dtype": "float16"}
    packed = load(**common, quantization_method="eetq", quantization_bit=8)[0].model
    plain = load(**common)[0].model.to(packed.device)
    with torch.no_grad():
        found, want = (model(input_ids=IDS.to(packed.device)).logits.float() for model in (packed, plain))
    assert float((found - want).abs().max() / want.abs().max()) < 0.05


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quantization_method": "hqq", "quantization_bit": 4}, MissingPackageError, r"'llamafactory\[hqq\]'"),
        ({"quantization_method": "torchao", "quantization_bit": 8}, MissingPackageError, r"'llamafactory\[torchao\]'"),
        ({"quantization_method": "eetq", "quantization_bit": 8}, MissingPackageError, "pip install kernels"),
    ],
)
def test_a_quantizer_whose_package_is_missing_names_the_command(
    load: Load, base_dir: Path, monkeypatch: pytest.MonkeyPatch, options: dict, error: type, words: str
) -> None:
    monkeypatch.setattr("llamafactory.parts.importlib.util.find_spec", lambda name: None)
    with pytest.raises(error, match=words):
        load(model_name_or_path=str(base_dir), **options)
