"""Exports: what is written is what was trained, or nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_tokenizer
from tests.recipes.artefacts_for_tests import write_run
from tests.recipes.hub_for_tests import Hub
from tests.recipes.test_modelfile import parse
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.errors import ConfigError, LlamaFactoryError, ModelError
from llamafactory.inference.loading import load_renderer
from llamafactory.models.load import load_model
from llamafactory.models.starter import build_model
from llamafactory.recipes.card import read_metadata
from llamafactory.recipes.export import run_export
from llamafactory.rendering.records import Conversation, Message

TALK = Conversation(
    (Message("user", "Who are you?"), Message("assistant", "A test."), Message("user", "And now?")), system="S"
)
CHAT = [{"role": message.role, "content": message.content} for message in TALK.messages]


@pytest.fixture(scope="module")
def run(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", model_dir, default_system='Say "yes".', template="llama3")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exports") / "deep" / "my model"
    return run_export({"model_name_or_path": str(run), "export_dir": str(target)})


@torch.no_grad()
def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits


def answer(folder: Path) -> str:
    keys = {"model_name_or_path": str(folder), "do_sample": False, "max_new_tokens": 12}
    with ChatModel(keys) as model:
        return model.chat(CHAT).text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_export_computes_what_base_and_adapter_compute(run: Path, exported: Path) -> None:
    config = load_config([str(run)], command="chat")
    bundle, renderer = load_renderer(config)
    ids = renderer.prompt_ids(TALK)
    with torch.no_grad():
        together = load_model(config, bundle, trainable=False, merge=False).model(torch.tensor([ids])).logits
    found = logits(exported, ids)
    assert torch.allclose(found, together, atol=1e-4 * float(together.abs().max()))
    assert answer(exported) == answer(run)


def test_the_exported_tokenizer_renders_the_trained_prompt(run: Path, exported: Path) -> None:
    _, renderer = load_renderer(load_config([str(run)], command="chat"))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, *CHAT], add_generation_prompt=True, return_dict=False
    )
    assert ids == renderer.prompt_ids(TALK)
    assert tokenizer.padding_side == "left"


def test_generation_stops_at_every_stop_token(run: Path, exported: Path) -> None:
    _, renderer = load_renderer(load_config([str(run)], command="chat"))
    assert len(renderer.stop_ids) > 1
    assert GenerationConfig.from_pretrained(exported).eos_token_id == list(renderer.stop_ids)


def test_the_modelfile_carries_template_stops_and_context(run: Path, exported: Path) -> None:
    _, renderer = load_renderer(load_config([str(run)], command="chat"))
    lines = parse((exported / "Modelfile").read_text(encoding="utf-8"))
    assert lines[0] == ("FROM", ".")
    assert dict(lines)["TEMPLATE"] == renderer.to_ollama()
    assert dict(lines)["SYSTEM"] == 'Say "yes".'
    assert [value for name, value in lines if name == "PARAMETER stop"] == list(renderer.stop_words)
    assert dict(lines)["PARAMETER num_ctx"] == "512"


def test_nothing_but_the_export_is_left(exported: Path) -> None:
    assert names(exported.parent) == ["my model"]
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "recipe.yaml",
    } <= set(names(exported))
    assert "adapter_config.json" not in names(exported)


def test_no_path_of_this_machine_is_told(exported: Path, run: Path) -> None:
    for name in (
        "recipe.yaml",
        "README.md",
        "Modelfile",
        "config.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert str(run.parent.parent) not in (exported / name).read_text(encoding="utf-8"), name
    assert "template: llama3" in (exported / "recipe.yaml").read_text(encoding="utf-8")


def test_a_repeated_export_replaces_the_earlier_one(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    keys = {"model_name_or_path": str(run), "export_dir": str(target)}
    run_export(keys)
    (target / "model.safetensors").unlink()
    run_export(keys)
    assert "model.safetensors" in names(target)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("own", [False, True])
def test_foreign_files_are_never_overwritten(run: Path, tmp_path: Path, own: bool) -> None:
    target = tmp_path / "out"
    target.mkdir()
    if own:
        (target / "recipe.yaml").write_text("export_dir: x\n", encoding="utf-8")
    (target / "thesis.doc").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"export_dir: .* not an earlier export \(it holds .*choose another folder"):
        run_export({"model_name_or_path": str(run), "export_dir": str(target)})
    assert (target / "thesis.doc").read_text(encoding="utf-8") == "mine"


def test_an_empty_folder_may_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run_export({"model_name_or_path": str(run), "export_dir": str(tmp_path / "out")})
    assert "model.safetensors" in names(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"export_dir: .*needs a target"),
    ],
)
def test_impossible_requests_are_refused(
    model_dir: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    if options:
        options = {**options, "export_dir": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match=words):
        run_export({"model_name_or_path": str(model_dir), "template": "chatml", **options})
    assert names(tmp_path) == []


def test_the_model_itself_is_not_a_target(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="is the model itself"):
        run_export({"model_name_or_path": str(model_dir), "template": "chatml", "export_dir": str(model_dir)})


def test_a_file_is_not_a_target(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="a file called out"):
        run_export({"model_name_or_path": str(run), "export_dir": str(tmp_path / "out")})


def test_a_save_that_keeps_the_base_is_noticed(
    run: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a library writes the weights it once read in place of those in memory."""
    original = LlamaForCausalLM.save_pretrained

    def forgetful(self: LlamaForCausalLM, folder: Path, **options: object) -> None:
        original(self, folder, **options)
        shutil.copy(model_dir / "model.safetensors", folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", forgetful)
    with pytest.raises(ModelError, match="still those of the base"):
        run_export({"model_name_or_path": str(run), "export_dir": str(tmp_path / "out")})
    assert names(tmp_path) == []


def test_a_full_model_is_compared_too(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"model_name_or_path": str(model_dir), "template": "chatml", "export_dir": str(tmp_path / "out")}
    assert torch.equal(logits(run_export(keys), [5, 6, 7]), logits(model_dir, [5, 6, 7]))
    original = LlamaForCausalLM.save_pretrained

    def broken(self: LlamaForCausalLM, folder: Path, **options: object) -> None:
        original(self, folder, **options)
        tensors = load_file(Path(folder, "model.safetensors"))
        tensors["model.norm.weight"] *= 1.5
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", broken)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="nothing was exported"):
        run_export(keys)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert names(tmp_path) == ["out"]


def test_a_broken_adapter_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="broken values"):
        run_export({"model_name_or_path": str(broken), "export_dir": str(tmp_path / "out")})
    assert names(tmp_path) == ["broken"]


def test_a_pickled_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(run, pickled)
    (pickled / "adapter_model.safetensors").unlink()
    (pickled / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(LlamaFactoryError, match="pickled weights"):
        run_export({"model_name_or_path": str(pickled), "export_dir": str(tmp_path / "out")})
    assert names(tmp_path) == ["pickled"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_asked_for_is_written(model_dir: Path, tmp_path: Path, dtype: str) -> None:
    gentle = write_run(tmp_path / "run", model_dir, strength=0.05)
    target = run_export({"model_name_or_path": str(gentle), "export_dir": str(tmp_path / "out"), "infer_dtype": dtype})
    assert {str(tensor.dtype) for tensor in load_file(target / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert json.loads((target / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key", ["add_special_tokens", "add_tokens"])
def test_a_grown_vocabulary_survives(tmp_path: Path, tied: bool, key: str) -> None:
    base = tmp_path / "base"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(base)
    build_model(tokenizer, hidden_size=32, num_layers=2, tie_word_embeddings=tied).save_pretrained(base)
    run = write_run(tmp_path / "run", base, **{key: "<new_a>,<new_b>"})
    target = run_export({"model_name_or_path": str(run), "export_dir": str(tmp_path / "out")})
    exported = AutoTokenizer.from_pretrained(target)
    ids = exported.encode("<new_a> hello <new_b>", add_special_tokens=False)
    assert exported.convert_tokens_to_ids("<new_b>") in ids
    assert AutoModelForCausalLM.from_pretrained(target).config.vocab_size >= len(exported) > len(tokenizer)
    config = load_config([str(run)], command="chat")
    bundle, _ = load_renderer(config)
    with torch.no_grad():
        together = load_model(config, bundle, trainable=False, merge=False).model(torch.tensor([ids])).logits
    assert torch.allclose(logits(target, ids), together, atol=1e-4 * float(together.abs().max()))
    assert answer(target) == answer(run)


def test_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(other)
    build_model(tokenizer, hidden_size=32, num_layers=2, max_length=512, seed=7).save_pretrained(other)
    keys = {"model_name_or_path": str(other), "adapter_name_or_path": str(run), "template": "llama3"}
    with pytest.raises(ModelError, match=r"was trained on other weights than these .* give the base"):
        run_export({**keys, "export_dir": str(tmp_path / "out")})
    assert names(tmp_path) == ["other"]


OWN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHORT_TALKS_ONLY = "{% if messages|length > 3 %}{{ raise_exception('too long') }}{% endif %}" + OWN


@pytest.mark.parametrize(("template", "has_modelfile"), [(OWN, True), (SHORT_TALKS_ONLY, False)])
def test_the_tokenizers_own_template_is_kept(
    tmp_path: Path,
    template: str,
    has_modelfile: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tmp_path / "base"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    build_model(tokenizer, hidden_size=32, num_layers=2).save_pretrained(base)
    target = run_export({"model_name_or_path": str(base), "export_dir": str(tmp_path / "out")})
    assert AutoTokenizer.from_pretrained(target).chat_template == template
    assert (target / "Modelfile").exists() == has_modelfile
    assert ("No Modelfile was written" in caplog.text) == (not has_modelfile)


def test_two_adapters_are_both_merged(run: Path, model_dir: Path, tmp_path: Path) -> None:
    second = write_run(
        tmp_path / "second", model_dir, adapter_name_or_path=str(run), create_new_adapter=True, template="llama3"
    )
    target = run_export({"model_name_or_path": str(second), "export_dir": str(tmp_path / "out")})
    config = load_config([str(second)], command="chat")
    assert len(config.model.adapter_name_or_path) == 2
    assert answer(target) == answer(second)
    assert not torch.allclose(logits(target, [5, 6, 7]), logits(run_export(
        {"model_name_or_path": str(run), "export_dir": str(tmp_path / "first")}), [5, 6, 7]))  # fmt: skip


def test_licence_files_and_metadata_travel(run: Path, model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_dir, base)
    (base / "LICENSE.txt").write_text("be kind", encoding="utf-8")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    keys = {"model_name_or_path": str(base), "adapter_name_or_path": str(run), "template": "llama3"}
    target = run_export({**keys, "export_dir": str(tmp_path / "out")})
    assert (target / "LICENSE.txt").read_text(encoding="utf-8") == "be kind"
    assert read_metadata(target)["license"] == "apache-2.0"


@pytest.mark.slow
def test_the_command_exports_and_uploads(run: Path, tmp_path: Path) -> None:
    hub = Hub()
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = [f"model_name_or_path={run}", f"export_dir={tmp_path / 'out'}", "export_hub_model_id=owner/export"]
    done = subprocess.run(
        [sys.executable, "-m", "llamafactory", "export", *words, "hf_hub_token=hf_good"],
        env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert "merge verified" in done.stderr
    assert "model.safetensors" in hub.files
    assert hub.files["Modelfile"] == (tmp_path / "out" / "Modelfile").read_bytes()
    assert "hf_good" not in done.stderr + done.stdout
    assert not any(b"hf_good" in content for content in hub.files.values())
