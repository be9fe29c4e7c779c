"""No door of a model folder leads to code: canaries in every place that libraries look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llamafactory.errors import ModelError
from llamafactory.models.remote_code import refuse_code

CODE = """
from pathlib import Path
Path({canary!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): config_class = Config
"""

DOORS = {
    "config": ("config.json", {"auto_map": {"AutoConfig": "canary.Config"}}),
    "model": ("config.json", {"auto_map": {"AutoModelForCausalLM": "canary.Model"}}),
    "nested": ("config.json", {"text_config": {"model_type": "llama", "auto_map": {"AutoConfig": "canary.Config"}}}),
    "list": ("config.json", {"parts": [{"auto_map": {"AutoConfig": "canary.Config"}}]}),
    "model_file": ("config.json", {"model_file": "canary.py"}),
    "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["canary.Config", None]}}),
    "processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "canary.Config"}}),
    "image processor": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "canary.Config"}}),
}
FOREIGN = {
    "attention kernel": ("config.json", {"attn_implementation": "someone/kernel"}),
    "inner attention": ("config.json", {"_attn_implementation": {"text_config": "someone/kernel:flash"}}),
    "internal attention": ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
    "experts": ("config.json", {"vision_config": {"experts_implementation": "someone/kernel"}}),
    "kernels": ("config.json", {"kernel_config": {"RMSNorm": "someone/kernel:norm"}}),
    "other repository": ("config.json", {"auto_map": {"AutoConfig": "someone/else--canary.Config"}}),
    "megatron": ("adapter_config.json", {"megatron_config": {"a": 1}, "megatron_core": "megatron.canary"}),
}


def plant(folder: Path, file: str, entry: dict, canary: Path) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entry}))
    (folder / "canary.py").write_text(CODE.format(canary=str(canary)))


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_dir, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("door", DOORS)
def test_code_is_refused_and_silent(load, copy: Path, tmp_path: Path, door: str) -> None:
    canary = tmp_path / "canary.txt"
    plant(copy, "config.json", {"model_type": "brand_new"}, canary)
    plant(copy, *DOORS[door], canary)
    with pytest.raises(ModelError, match=r"names Python code .* unless trust_remote_code: true is set"):
        load(model_name_or_path=str(copy))
    assert not canary.exists()


@pytest.mark.parametrize("door", ["config", "model", "tokenizer"])
def test_a_family_that_transformers_knows_loads_without_the_repositorys_code(
    load, copy: Path, tmp_path: Path, door: str, caplog: pytest.LogCaptureFixture
) -> None:
    canary = tmp_path / "canary.txt"
    plant(copy, *DOORS[door], canary)
    load(model_name_or_path=str(copy))
    assert not canary.exists()
    assert any("is not run, transformers' own class is used" in message for message in caplog.messages)


@pytest.mark.parametrize("door", FOREIGN)
@pytest.mark.parametrize("trusted", [False, True])
def test_code_from_elsewhere_is_refused_even_with_the_flag(
    load, copy: Path, tmp_path: Path, door: str, trusted: bool
) -> None:
    plant(copy, *FOREIGN[door], tmp_path / "canary.txt")
    with pytest.raises(ModelError, match=r"names code outside this folder, which is never fetched or run"):
        load(model_name_or_path=str(copy), trust_remote_code=trusted)
    assert not (tmp_path / "canary.txt").exists()


def test_flag_lets_the_named_repository_run(
    load, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = tmp_path / "canary.txt"
    code = {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.Model"}
    plant(copy, "config.json", {"auto_map": code}, canary)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load(model_name_or_path=str(copy), trust_remote_code=True)
    assert canary.exists()
    assert any("running Python code of" in message and str(copy) in message for message in caplog.messages)


def test_adapter_folders_are_checked_too(load, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    plant(folder, *DOORS["tokenizer"], tmp_path / "canary.txt")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(model_name_or_path=str(model_dir), adapter_name_or_path=str(folder))


def test_an_adapter_hidden_in_a_model_folder_is_not_followed(load, copy: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(ModelError, match="is an adapter"):
        load(model_name_or_path=str(copy))


def test_deep_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    with pytest.raises(ModelError, match="expected a JSON file"):
        refuse_code(tmp_path, "x", trusted=False)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config.json: expected a JSON file, found something else"):
        refuse_code(tmp_path, "x", trusted=False)


def test_ordinary_values_pass(tmp_path: Path) -> None:
    plain = {
        "kernel_size": 3,
        "attn_implementation": "sdpa",
        "_name_or_path": "org/name",
        "auto_map": {},
        "model_file": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(plain))
    refuse_code(tmp_path, "x", trusted=False)
