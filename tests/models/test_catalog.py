"""The model catalogue: its facts, finding by id, and the template a run of a known model is rendered with."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from llamafactory import logs
from llamafactory.config import RunConfig, load_config
from llamafactory.errors import ConfigError
from llamafactory.models import catalog
from llamafactory.models.catalog import find, models, nearest, resolve_template, search, template_for
from llamafactory.rendering.template import templates

ROOT = Path(__file__).parents[2]
ID = re.compile(r"[\w.-]+/[\w.-]+")
INSTRUCT, BASE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B"


def config_of(model: str, **keys: object) -> RunConfig:
    return load_config({"model_name_or_path": model, **keys}, command="chat")


def used(model: str, **keys: object) -> str | None:
    return resolve_template(config_of(model, **keys)).template


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of one test, in which every notice is new."""
    logs.notice.cache_clear()
    monkeypatch.setattr(logging.getLogger("llamafactory"), "propagate", True)
    return caplog


def test_every_model_stands_here_once_with_ids() -> None:
    names = [model.name for model in models()]
    assert len(names) == len(set(names)) == 754
    assert all(model.ids and all(ID.fullmatch(name) for name in model.ids) for model in models())
    assert sum(model.multimodal for model in models()) == 176
    assert sum(model.om is not None for model in models()) > 20


def test_models_of_one_id_have_one_template() -> None:
    for model in models():
        for name in model.ids:
            assert template_for(name) == model.template, name


def test_file_is_short_and_read_quickly() -> None:
    text = (ROOT / "src/llamafactory/models/catalog.yaml").read_text(encoding="utf-8")
    assert text.count("\n") < 1500
    seconds = []
    for _ in range(3):
        models.cache_clear()
        start = time.process_time()
        models()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen"),
        ("qwen/qwen2.5-0.5b-instruct", "qwen"),
        ("LLM-Research/Meta-Llama-3-8B-Instruct", "llama3"),  # the id on ModelScope
        ("LlamaFactory/Llama3-Chinese-8B-Instruct", "llama3"),  # the id on Modelers
        ("Qwen/Qwen3-0.6B", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseekr1"),
        ("microsoft/Phi-3.5-mini-instruct", "phi"),
        ("THUDM/chatglm2-6b", "chatglm2"),  # a model of an earlier time
        ("google/gemma-3-4b-pt", "gemma3"),  # a base model that reads images
        ("Qwen/Qwen2.5-0.5B", None),  # a base model
        ("gpt2", None),
        ("Qwen2.5-0.5B-Instruct", None),  # a name, not an id
        ("models/Qwen2.5-0.5B-Instruct", None),
        ("./Qwen/Qwen2.5-0.5B-Instruct", None),
        ("", None),
        (None, None),
    ],
)
def test_template_for(name: str | None, template: str | None) -> None:
    assert template_for(name) == template


def test_base_models_know_the_template_of_their_family() -> None:
    model = find(BASE)
    assert model is not None and model.base and model.family_template == "qwen" and model.template is None


def test_search_looks_at_names_and_ids_whatever_the_case() -> None:
    assert [model.name for model in search("QWEN2.5-0.5b-instruct-awq")] == ["Qwen2.5-0.5B-Instruct-AWQ"]
    assert {model.name for model in search("llm-research llama-3-8b")} >= {"Llama-3-8B", "Llama-3-8B-Instruct"}
    assert len(search("")) == 754
    assert search("no such model") == []


def test_nearest_names_come_best_first() -> None:
    assert nearest("gwen2.5-7b-instuct")[0] == "Qwen2.5-7B-Instruct"
    assert nearest("meta-llama/Llama-2-7b-chat")[0] == "Llama-2-7B-Chat"
    assert nearest("0123456789") == []


def test_known_model_brings_its_template(told: pytest.LogCaptureFixture) -> None:
    config = config_of(INSTRUCT, default_system="Be brief.")
    section = resolve_template(config)
    assert (section.template, section.default_system) == ("qwen", "Be brief.")
    assert config.template.template is None
    resolve_template(config)
    assert told.text.count("template: left out, so 'qwen' is used, which Qwen2.5-0.5B-Instruct was trained with") == 1


def test_unknown_and_base_models_keep_the_section(told: pytest.LogCaptureFixture) -> None:
    for model in (BASE, "someone/something", "gpt2"):
        config = config_of(model)
        assert resolve_template(config) is config.template
    assert told.text == ""


def test_the_own_template_of_an_adapter_wins() -> None:
    assert resolve_template(config_of(INSTRUCT), keep_own=True).template is None


def test_empty_in_the_catalogue_leaves_the_choice_to_the_tokenizer() -> None:
    assert template_for("openbmb/MiniCPM5-1B") == "empty"
    assert used("openbmb/MiniCPM5-1B") is None
    assert used("openbmb/MiniCPM5-1B", template="chatml") == "chatml"


def test_contradiction_names_the_template_and_the_ways_out(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: {INSTRUCT}\ntemplate: llama3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve_template(load_config(str(file), command="chat"))
    assert str(caught.value) == (
        f"template: 'llama3' ({file}:2) is not what Qwen2.5-0.5B-Instruct was trained with, 'qwen' is, and other "
        "markup costs what it has learnt; set template: qwen, leave the key out, or set allow_template_mismatch: true "
        "to use it all the same"
    )


@pytest.mark.parametrize(
    ("model", "template"),
    [
        (INSTRUCT, "default"),
        (INSTRUCT, "empty"),
        (INSTRUCT, "qwen3_nothink"),  # leaves the system prompt out
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3"),  # writes thoughts the model never had
        ("qwen/qwen3-0.6b", "llama3"),
    ],
)
def test_other_templates_of_known_models_are_refused(model: str, template: str) -> None:
    with pytest.raises(ConfigError, match=f"{template!r} .*is not what "):
        used(model, template=template)


@pytest.mark.parametrize(
    ("model", "template"),
    [
        (INSTRUCT, "qwen"),
        ("Qwen/Qwen3-0.6B", "qwen3"),
        ("Qwen/Qwen3-0.6B", "qwen3_nothink"),  # the same without reasoning
        ("google/gemma-3-4b-it", "gemma"),  # another name for the same text
        (BASE, "llama3"),
        (BASE, "default"),
        (BASE, "empty"),
        ("google/gemma-3-4b-pt", "chatml"),
        ("gpt2", "chatml"),
        ("someone/something", "llama3"),
    ],
)
def test_template_that_contradicts_nothing_is_taken(model: str, template: str) -> None:
    assert used(model, template=template) == template


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("google/gemma-3-1b-it", "gemma3"),
        ("google/gemma-2-2b-it", "gemma"),
        ("google/gemma-3-4b-it", "gemma2"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "llama3"),
    ],
)
def test_template_of_the_same_text_with_another_end_is_taken(
    model: str, template: str, told: pytest.LogCaptureFixture
) -> None:
    assert used(model, template=template) == template
    assert f"template: {template!r} writes the text " in told.text or template == "llama3"


def test_contradiction_can_be_allowed(told: pytest.LogCaptureFixture) -> None:
    assert used(INSTRUCT, template="llama3", allow_template_mismatch=True) == "llama3"
    assert "template: 'llama3' is used as allowed, although Qwen2.5-0.5B-Instruct was trained with 'qwen'" in told.text


def test_untrained_weights_have_learnt_no_template() -> None:
    keys = {"dataset": "d", "do_train": True, "output_dir": "o", "finetuning_type": "full"}
    config = load_config(
        {"model_name_or_path": INSTRUCT, "template": "llama3", "train_from_scratch": True, **keys}, command="train"
    )
    assert resolve_template(config).template == "llama3"


def test_multimodal_model_is_told_to_read_text_only(told: pytest.LogCaptureFixture) -> None:
    resolve_template(config_of("Qwen/Qwen2-VL-2B-Instruct"))
    words = "model_name_or_path: Qwen2-VL-2B-Instruct also reads images, video or sound; here it reads text only"
    assert told.text.count(words) == 1


def test_examples_agree_with_the_catalogue() -> None:
    seen = 0
    for file in (ROOT / "examples").rglob("*.yaml"):
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(keys, dict) and find(keys.get("model_name_or_path")) and keys.get("template"):
            used(keys["model_name_or_path"], template=keys["template"])
            seen += 1
    assert seen > 5


def test_templates_of_the_catalogue_exist() -> None:
    named = {model.family_template for model in models()} - {None}
    assert named - set(templates()) == set()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["schema"]], ids=str)
def test_light_commands_do_not_read_the_catalogue(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from llamafactory.cli import main; "
        f"assert main({words!r}) == 0; sys.exit('{catalog.__name__}' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
