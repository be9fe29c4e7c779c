"""The tokenizer of a run: added tokens, their kind, their descriptions, and where it is read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.errors import ConfigError, ModelError
from llamafactory.models.tokenizer import load_tokenizer


def test_plain(make_config, model_dir: Path) -> None:
    bundle = load_tokenizer(make_config(model_name_or_path=str(model_dir)))
    assert bundle.tokenizer.padding_side == "right"
    assert bundle.added_tokens == ()
    assert not bundle.must_resize
    assert bundle.folder == model_dir


def test_added_tokens_and_their_kind(make_config, model_dir: Path) -> None:
    config = make_config(
        model_name_or_path=str(model_dir), add_tokens="word,<s>", add_special_tokens="<|start|>,<|stop|>"
    )
    bundle = load_tokenizer(config)
    assert bundle.added_tokens == ("word", "<|start|>", "<|stop|>")  # <s> was there
    assert bundle.special_tokens == ("<|start|>", "<|stop|>")
    assert bundle.must_resize
    ids = bundle.tokenizer.convert_tokens_to_ids(list(bundle.added_tokens))
    assert bundle.tokenizer.decode(ids, skip_special_tokens=True).strip() == "word"
    assert bundle.tokenizer("<|start|>", add_special_tokens=False)["input_ids"] == [ids[1]]


def test_special_tokens_file(make_config, model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text("<think>: start of a thought\n</think>: end of a thought\n")
    config = make_config(
        model_name_or_path=str(model_dir), new_special_tokens_config=str(file), add_special_tokens="<other>"
    )
    bundle = load_tokenizer(config)
    assert bundle.added_tokens == bundle.special_tokens == ("<think>", "</think>")
    assert bundle.descriptions["<think>"] == "start of a thought"
    assert config.vocab.add_special_tokens == ("<other>",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"new_special_tokens_config: the file .* does not exist"),
        ("- a\n- b\n", r"must map tokens to descriptions, got list"),
        ("<a>: 1\n", r"must map tokens to descriptions"),
        ("!!python/name:os.system", r"is not valid YAML"),
    ],
)
def test_bad_special_tokens_file(
    make_config, model_dir: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "tokens.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(make_config(model_name_or_path=str(model_dir), new_special_tokens_config=str(file)))


def test_settings_without_effect_are_told(make_config, model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"use_fast_tokenizer": False, "init_special_tokens": "desc_init"}
    bundle = load_tokenizer(make_config(model_name_or_path=str(model_dir), **options))
    assert any("use_fast_tokenizer: false has no effect" in note for note in bundle.notes)
    assert any("desc_init needs new_special_tokens_config" in message for message in caplog.messages)


def test_no_tokenizer(make_config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no tokenizer could be read from"):
        load_tokenizer(make_config(model_name_or_path=str(tmp_path)))


def test_descriptions_reach_the_embedding(load, model_dir: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    file = tmp_path / "tokens.yaml"
    file.write_text("<new>: sunny weather\n")
    options = {"new_special_tokens_config": str(file), "init_special_tokens": "desc_init"}
    loaded, bundle, _ = load(model_name_or_path=str(model_dir), finetuning_type="full", **options)
    words = bundle.tokenizer("sunny weather", add_special_tokens=False)["input_ids"]
    stored = load_file(model_dir / "model.safetensors")["model.embed_tokens.weight"]
    row = loaded.model.get_input_embeddings().weight[bundle.tokenizer.convert_tokens_to_ids("<new>")]
    assert torch.allclose(row, stored[words].mean(dim=0), atol=1e-6)
