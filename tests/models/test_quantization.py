"""A quantized base: what lies in memory, what learns, what is saved and read again, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import make_tokenizer
from tests.models.conftest import MakeConfig
from tests.models.small_training import IDS, logits, train
from transformers import LlamaConfig

from llamafactory.config import RunConfig
from llamafactory.errors import MissingPackageError, ModelError
from llamafactory.models.build import read_config
from llamafactory.models.inspect import count_parameters
from llamafactory.models.load import LoadedModel
from llamafactory.models.merge import merge_adapters
from llamafactory.models.quantization import QUANTIZERS, quantization_of
from llamafactory.models.quantization._choose import choose_quantizer
from llamafactory.models.record import read_record
from llamafactory.models.save import save_model
from llamafactory.models.starter import build_model

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.extra

Load = Callable[..., tuple[LoadedModel, object, object]]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama (hidden 64, one block of 4-bit weights), input and output embeddings apart."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    build_model(tokenizer, hidden_size=64, num_layers=2, max_length=512, tie_word_embeddings=False).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def stored_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, stored in 4 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("stored")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(base_dir, quantization_config=settings).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


FORMATS = [
    ({"quantization_bit": 4}, "bnb 4-bit (nf4, double)", torch.uint8),
    ({"quantization_bit": 4, "double_quantization": False, "quantization_type": "fp4"}, "bnb 4-bit (fp4)", torch.uint8),
    ({"quantization_bit": 8}, "bnb 8-bit (int8)", torch.int8),
]


@pytest.mark.parametrize(("options", "words", "dtype"), FORMATS, ids=["nf4", "fp4", "int8"])
def test_an_adapter_learns_on_a_quantized_base_and_comes_back(
    load: Load, base_dir: Path, tmp_path: Path, options: dict, words: str, dtype: torch.dtype
) -> None:
    options = {"model_name_or_path": str(base_dir), **options}
    loaded, bundle, _ = load(**options)
    base = loaded.model.get_base_model()
    layer = base.model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == dtype
    assert quantization_of(loaded.model).describe() == words and any(words in note for note in loaded.notes)
    assert base.lm_head.weight.dtype == base.model.embed_tokens.weight.dtype == torch.float32
    assert {p.dtype for p in loaded.model.parameters() if p.requires_grad} == {torch.float32}
    before = frozen(loaded.model)
    losses = train(loaded.model)
    assert losses[-1] < losses[0] - 0.3
    after = frozen(loaded.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    assert read_record(tmp_path).quantization == words
    again = load(trainable=False, adapter_name_or_path=(str(tmp_path),), **options)[0]
    assert torch.equal(logits(again.model), expected)
    resumed = load(adapter_name_or_path=(str(tmp_path),), **options)[0]
    assert train(resumed.model, 1)[0] < losses[-1]


def test_counts_see_every_packed_weight(load: Load, base_dir: Path) -> None:
    plain = load(trainable=False, model_name_or_path=str(base_dir))[0].model
    packed = load(trainable=False, model_name_or_path=str(base_dir), quantization_bit=4)[0].model
    assert count_parameters(packed) == count_parameters(plain)
    sizes = [sum(p.numel() * p.element_size() for p in model.model.layers.parameters()) for model in (packed, plain)]
    assert sizes[0] < sizes[1] / 7


@pytest.mark.parametrize("method", ["oft", "vera", "ia3"])
@pytest.mark.parametrize("bits", [4, 8])
def test_other_adapters_learn_too(load: Load, base_dir: Path, method: str, bits: int) -> None:
    loaded, _, _ = load(model_name_or_path=str(base_dir), quantization_bit=bits, finetuning_type=method)
    before = frozen(loaded.model)
    losses = train(loaded.model, 3)
    after = frozen(loaded.model)
    assert losses[-1] < losses[0] and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_init": "gaussian"},
        {"additional_target": ("embed_tokens", "lm_head")},
        {"resize_vocab": True, "add_tokens": ("<new_a>", "<new_b>")},
        {"bf16": True, "upcast_layernorm": True},
        {"pure_bf16": True},
        {"use_reentrant_gc": True},
        {"disable_gradient_checkpointing": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_variants_learn_and_come_back(load: Load, base_dir: Path, tmp_path: Path, options: dict) -> None:
    common = {"model_name_or_path": str(base_dir), "quantization_bit": 4}
    loaded, bundle, _ = load(**common, **options)
    losses = train(loaded.model, bf16="bf16" in options)
    assert losses[-1] < losses[0] - 0.2
    if "bf16" in options:
        assert loaded.model.get_base_model().model.norm.weight.dtype == torch.float32
    expected = logits(loaded.model, bf16="bf16" in options)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    kind = {"infer_dtype": "bfloat16"} if "pure_bf16" in options or "bf16" in options else {}
    again = load(trainable=False, adapter_name_or_path=(str(tmp_path),), **common, **kind)[0]
    assert (logits(again.model) - expected).abs().max() < (0.2 if kind else 1e-5)


def test_gradients_survive_an_evaluation_on_cpus_that_pack_weights_anew(
    load: Load, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes.nn.modules as modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)  # as on a CPU with AVX512-BF16
    loaded = load(model_name_or_path=str(base_dir), quantization_bit=4)[0]
    train(loaded.model, 2)

    def gradients() -> dict[str, torch.Tensor]:
        loaded.model.zero_grad()
        loaded.model.train()(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}

    before, packed = gradients(), frozen(loaded.model)
    logits(loaded.model)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(packed[name], value) for name, value in frozen(loaded.model).items())


def test_a_stored_model_decides_for_itself(
    load: Load, stored_dir: Path, base_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = load(trainable=False, model_name_or_path=str(base_dir), quantization_bit=4)[0]
    loaded, _, _ = load(model_name_or_path=str(stored_dir), quantization_bit=8, bf16=True)
    assert quantization_of(loaded.model).stored and "bnb 4-bit (nf4, double)" in loaded.record.quantization
    assert loaded.record.base_fingerprint == ""  # the plain base, which the adapter is merged into, has another
    assert "quantization_bit: 8 has no effect, the checkpoint is quantized already (bnb)" in caplog.text
    layer = loaded.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.compute_dtype == torch.bfloat16
    stored = load(trainable=False, model_name_or_path=str(stored_dir))[0]
    assert torch.equal(logits(stored.model), logits(fresh.model))


STORED_REFUSALS = [
    ({"finetuning_type": "full"}, "finetuning_type: full cannot train it; set finetuning_type: lora, or give"),
    ({"finetuning_type": "freeze"}, "finetuning_type: freeze cannot train it"),
    ({"finetuning_type": "loha"}, "finetuning_type: PEFT has no such adapter for bnb weights"),
    ({"lora_init": "pissa"}, "lora_init: pissa takes values out of unquantized weights"),
    ({"adapter_name_or_path": ("a", "b")}, "adapters cannot be merged into it; give one adapter"),
    ({"adapter_name_or_path": ("a",), "create_new_adapter": True}, "adapters cannot be merged into it"),
    ({"train_from_scratch": True, "finetuning_type": "full"}, "train_from_scratch makes random weights"),
]


@pytest.mark.parametrize(("options", "sentence"), STORED_REFUSALS)
def test_what_a_stored_quantized_model_refuses(
    make_config: MakeConfig, stored_dir: Path, options: dict, sentence: str
) -> None:
    config = make_config(model_name_or_path=str(stored_dir), **options)
    with pytest.raises(ModelError, match=r"is stored quantized \(bnb\), and ") as found:
        choose_quantizer(config, read_config(config)[1], dtype=torch.float32, trainable=True)
    assert sentence in str(found.value)


def test_an_adapter_only_read_beside_a_new_one_keeps_its_values(load: Load, base_dir: Path, tmp_path: Path) -> None:
    adapter = load(model_name_or_path=str(base_dir))[0].model
    train(adapter)
    adapter.save_pretrained(tmp_path / "adapter")
    wanted = {name: value.clone() for name, value in adapter.named_parameters() if "lora_" in name}
    options = {"adapter_name_or_path": (str(tmp_path / "adapter"),), "create_new_adapter": True}
    read, _, _ = load(
        trainable=False, model_name_or_path=str(base_dir), quantization_bit=4, lora_init="gaussian", **options
    )
    found = dict(read.model.named_parameters())
    assert wanted and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_dora_does_not_meet_a_base_stored_in_8_bits(load: Load, base_dir: Path, tmp_path: Path) -> None:
    model = load(trainable=False, model_name_or_path=str(base_dir), quantization_bit=8)[0].model
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="use_dora: PEFT's DoRA cannot read 8-bit weights; remove use_dora, or give"):
        load(model_name_or_path=str(tmp_path), use_dora=True)


def test_merging_is_refused_with_the_way_out(load: Load, base_dir: Path) -> None:
    loaded = load(model_name_or_path=str(base_dir), quantization_bit=4)[0]
    with pytest.raises(ModelError, match=r"cannot be merged into a quantized base .* \(remove quantization_bit\)"):
        merge_adapters(loaded.model)


def test_packed_weights_borrow_the_format_of_the_others_where_they_are_sharded(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    part, config = QUANTIZERS.load("bnb"), make_config(quantization_bit=4, bf16=True)
    options = part.build(config, LlamaConfig(), dtype=torch.bfloat16, trainable=True).options
    assert options["quantization_config"].bnb_4bit_quant_storage == torch.bfloat16
    assert "device_map" not in options


def test_a_missing_package_is_told_with_its_command(
    load: Load, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'llamafactory\[bitsandbytes\]'"):
        QUANTIZERS.load("bnb").build(RunConfig(), LlamaConfig(), dtype=torch.float32, trainable=False)


@pytest.mark.parametrize("options", [{}, {"quantization_type": "fp4", "double_quantization": False}], ids=str)
def test_loftq_starts_nearer_to_the_plain_model_and_is_merged_exactly(
    load: Load, base_dir: Path, tmp_path: Path, options: dict
) -> None:
    plain = logits(load(trainable=False, model_name_or_path=str(base_dir))[0].model)
    common = {"model_name_or_path": str(base_dir), "quantization_bit": 4, "lora_rank": 16, **options}
    rounded = logits(load(trainable=False, **common)[0].model)
    loaded, bundle, _ = load(lora_init="loftq", **common)
    assert (logits(loaded.model) - plain).norm() < 0.8 * (rounded - plain).norm()
    losses = train(loaded.model)
    assert losses[-1] < losses[0] - 0.3
    expected = logits(loaded.model)
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    again = load(trainable=False, adapter_name_or_path=(str(tmp_path),), **common)[0]
    assert torch.equal(logits(again.model), expected)
    merged = load(trainable=False, adapter_name_or_path=(str(tmp_path),), model_name_or_path=str(base_dir))[0]
    assert (logits(merged.model) - expected).abs().max() < 1e-4
    with pytest.raises(ModelError, match=r"a base held as bnb 8-bit \(int8\) cannot be changed; use bnb with"):
        load(trainable=False, adapter_name_or_path=(str(tmp_path),), **common | {"quantization_bit": 8})
    other = load(trainable=False, adapter_name_or_path=(str(tmp_path),), **common | {"quantization_type": "nf4"})[0]
    assert (logits(other.model) - expected).norm() < 0.3 * expected.norm()


def test_loftq_does_not_meet_a_base_stored_quantized(
    load: Load, base_dir: Path, stored_dir: Path, tmp_path: Path
) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(base_dir), quantization_bit=4, lora_init="loftq")
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    with pytest.raises(ModelError, match=r"\(lora_init: loftq\), and the base is stored quantized; give the unquant"):
        load(trainable=False, model_name_or_path=str(stored_dir), adapter_name_or_path=(str(tmp_path),))
