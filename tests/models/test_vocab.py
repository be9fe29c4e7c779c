"""New tokens: values of their rows, and the whole way train, save, fresh load, merge, reload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafactory.config.artefact import read_run_folder
from llamafactory.errors import ConfigError, ModelError
from llamafactory.models.load import load_model
from llamafactory.models.merge import merge_adapters, observe, verify_merge
from llamafactory.models.save import save_model
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.models.vocab import NewRows, grow_vocab, num_rows, padded_rows


def embeddings(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def read(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_padding_to_a_multiple_of_64() -> None:
    assert [padded_rows(size) for size in (1, 64, 65, 600)] == [64, 64, 128, 640]


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_mean_plus_noise(model_dir: Path, untied_dir: Path, tied: bool) -> None:
    model = read(model_dir if tied else untied_dir)
    old = num_rows(model)
    mean = embeddings(model)[0].mean(dim=0)
    assert grow_vocab(model, old + 320, NewRows(seed=7))
    inputs, head = embeddings(model)
    assert (inputs.data_ptr() == head.data_ptr()) is tied
    assert inputs.shape[0] == head.shape[0] == model.config.vocab_size == old + 320
    noise = inputs[old:] - mean
    assert abs(float(noise.std()) - 1 / 32**0.5) < 0.01
    assert float(noise.mean(dim=0).abs().max()) < 0.06


@pytest.mark.parametrize("seed", [3, 4])
def test_rows_depend_on_the_seed_alone(untied_dir: Path, seed: int) -> None:
    first, second, other = read(untied_dir), read(untied_dir), read(untied_dir)
    torch.manual_seed(0)
    grow_vocab(first, 640, NewRows(seed=seed))
    torch.manual_seed(99)
    grow_vocab(second, 640, NewRows(seed=seed))
    grow_vocab(other, 640, NewRows(seed=seed + 10))
    for a, b, c in zip(embeddings(first), embeddings(second), embeddings(other), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_described_rows(untied_dir: Path) -> None:
    model = read(untied_dir)
    old = num_rows(model)
    before = [weight.clone() for weight in embeddings(model)]
    grow_vocab(model, old + 2, NewRows((old, old + 1), {old: (5, 9)}, "desc_init"))
    for weight, earlier in zip(embeddings(model), before, strict=True):
        assert torch.allclose(weight[old], earlier[[5, 9]].mean(dim=0))
        assert not torch.allclose(weight[old + 1], earlier.mean(dim=0))  # no description: mean plus noise
    noisy = read(untied_dir)
    grow_vocab(noisy, old + 2, NewRows((old, old + 1), {old: (5, 9)}, "desc_init_w_noise"))
    assert not torch.allclose(embeddings(noisy)[0][old], before[0][[5, 9]].mean(dim=0))


def test_rows_are_found_by_token_id_in_a_padded_vocabulary(load, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.save_pretrained(folder)
    model = read(model_dir)
    model.resize_token_embeddings(704)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(tokenizer) :] = 50.0
    model.save_pretrained(folder)
    loaded, bundle, _ = load(model_name_or_path=str(folder), finetuning_type="full", add_tokens="<new>")
    weight = embeddings(loaded.model)[0]
    row = bundle.tokenizer.convert_tokens_to_ids("<new>")
    assert weight.shape[0] == 704
    assert float(weight[row].abs().max()) < 49
    assert float(weight[row + 1].min()) == 50.0


def test_tokenizer_larger_than_the_model(load, untied_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untied_dir)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(70)])
    tokenizer.save_pretrained(untied_dir)
    with pytest.raises(ModelError, match=r"holds \d+ tokens but the model has \d+ rows.*resize_vocab: true"):
        load(model_name_or_path=str(untied_dir))
    loaded, bundle, _ = load(model_name_or_path=str(untied_dir), resize_vocab=True, finetuning_type="full")
    assert num_rows(loaded.model) == padded_rows(len(bundle.tokenizer))


def test_lora_on_a_grown_embedding_is_refused(load, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="'embed_tokens' must be trained in full because the vocabulary grew"):
        load(model_name_or_path=str(model_dir), add_tokens="<new>", lora_target="q_proj,embed_tokens")


def test_adding_tokens_beyond_an_adapter(load, model_dir: Path, tmp_path: Path) -> None:
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), add_tokens="<new>")
    save_model(loaded.model, bundle.tokenizer, tmp_path, record=loaded.record)
    many = ",".join(f"<more{index}>" for index in range(100))
    with pytest.raises(ModelError, match=r"adapter was trained with \d+ rows.*export the merged model first"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(tmp_path), add_tokens=many)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("target", ["all", "q_proj"])
def test_round_trip_with_new_tokens(
    load,
    make_config,
    sgd_step,
    model_dir: Path,
    untied_dir: Path,
    tmp_path: Path,
    tied: bool,
    special: bool,
    target: str,
) -> None:
    base = model_dir if tied else untied_dir
    tokens = {"add_special_tokens" if special else "add_tokens": "<new_a>,<new_b>"}
    loaded, bundle, _ = load(model_name_or_path=str(base), lora_target=target, **tokens)
    before = sgd_step(loaded.model)
    changed = {name for name, p in loaded.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("embed_tokens.modules_to_save" in name for name in changed)
    assert all("lora_" in name or "modules_to_save" in name for name in changed)
    loaded.model.eval()
    ids = torch.tensor([[*range(40, 56), *bundle.tokenizer.convert_tokens_to_ids(["<new_a>", "<new_b>"])]])
    expected = loaded.model(input_ids=ids).logits
    adapter, merged_dir = tmp_path / "adapter", tmp_path / "merged"
    save_model(loaded.model, bundle.tokenizer, adapter, record=loaded.record)
    kind = "special" if special else "normal"
    assert loaded.record.added_tokens == (("<new_a>", kind), ("<new_b>", kind))

    found = {item.key: item.value for item in read_run_folder(adapter, "export")}
    assert found == {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter)}
    config = make_config("export", **found)
    fresh_bundle = load_tokenizer(config)
    assert len(fresh_bundle.tokenizer) == len(bundle.tokenizer)
    fresh = load_model(config, fresh_bundle, trainable=False, merge=False)
    assert torch.allclose(fresh.model(input_ids=ids).logits, expected, atol=1e-6)
    probe = observe(fresh.model, ids)
    merged = merge_adapters(fresh.model)
    save_model(merged, fresh_bundle.tokenizer, merged_dir, record=fresh.record)
    report = verify_merge(probe, merged_dir)
    assert "model.embed_tokens.weight" in report.changed
    again = read(merged_dir)
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) is tied
    assert ("lm_head.weight" in load_file(merged_dir / "model.safetensors")) is not tied
    assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(merged_dir).convert_tokens_to_ids("<new_a>") == ids[0, -2]


def test_quantized_embeddings_cannot_grow(untied_dir: Path) -> None:
    model = read(untied_dir)
    weight = model.get_input_embeddings().weight
    model.get_input_embeddings().weight = torch.nn.Parameter(weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="embeddings of this model are quantized, so they cannot grow"):
        grow_vocab(model, num_rows(model) + 64, NewRows())
