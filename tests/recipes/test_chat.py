"""The chat command on run folders: nothing but the folder is needed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tests.recipes.artefacts_for_tests import write_run

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.inference.artefact import complete
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.engines import huggingface
from llamafactory.recipes.chat import run_chat
from llamafactory.rendering.records import Conversation, Message

GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def run(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "my run"
    return write_run(folder, model_dir, default_system="You are a test.", template="llama3", cutoff_len=256)


def answer(source: object) -> str:
    with ChatModel(source) as model:  # type: ignore[arg-type]
        return model.chat([{"role": "user", "content": "hello"}]).text


def test_the_folder_as_a_word_or_as_a_model_means_the_same(run: Path) -> None:
    by_word = load_config([str(run), "do_sample=false", "max_new_tokens=8"], command="chat")
    by_key = complete(load_config({"model_name_or_path": str(run), **GREEDY}, command="chat"))
    assert by_word == by_key
    assert by_key.template.template == "llama3"
    assert by_key.template.default_system == "You are a test."
    assert by_key.model.adapter_name_or_path == (str(run),)
    assert answer(by_word) == answer({"model_name_or_path": str(run), **GREEDY})


def test_the_adapter_takes_part(run: Path, model_dir: Path) -> None:
    keys = {"template": "llama3", "default_system": "You are a test.", **GREEDY}
    assert answer({"model_name_or_path": str(model_dir), **keys}) != answer({"model_name_or_path": str(run), **GREEDY})


def test_what_the_user_gives_wins_over_the_recipe(run: Path) -> None:
    keys = {"model_name_or_path": str(run), "template": "chatml", "default_system": ""}
    config = complete(load_config(keys, command="chat"))
    assert (config.template.template, config.template.default_system) == ("chatml", "")


def test_a_recipe_cannot_switch_trust_on(run: Path, tmp_path: Path) -> None:
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for file in run.iterdir():
        (foreign / file.name).write_bytes(file.read_bytes())
    changed = recipe.replace("trust_remote_code: false", "trust_remote_code: true")
    changed = changed.replace("allow_pickle_weights: false", "allow_pickle_weights: true")
    assert changed != recipe
    (foreign / "recipe.yaml").write_text(changed, encoding="utf-8")
    config = complete(load_config({"model_name_or_path": str(foreign)}, command="chat"))
    assert not config.hub.trust_remote_code
    assert not config.hub.allow_pickle_weights


def test_a_plain_model_is_left_alone(model_dir: Path) -> None:
    config = load_config({"model_name_or_path": str(model_dir), "template": "chatml"}, command="chat")
    assert complete(config) is config


def test_prompt_ids_of_chat_are_those_of_the_training_renderer(run: Path) -> None:
    config = load_config([str(run)], command="chat")
    engine = huggingface.build(config)
    train = load_config(str(run / "recipe.yaml"), command="train")
    from llamafactory.inference.loading import load_renderer

    _, renderer = load_renderer(train)
    conversation = Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    assert engine.prompt_ids(conversation) == renderer.prompt_ids(conversation)
    assert engine.renderer.stop_ids == renderer.stop_ids


def test_run_chat_reads_and_writes_the_standard_streams(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert run_chat({"model_name_or_path": str(run), **GREEDY}) == 0
    assert capsys.readouterr().out.rstrip("\n") == answer({"model_name_or_path": str(run), **GREEDY}).rstrip("\n")


def test_a_reward_model_cannot_chat(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage: .* is a reward model .* no answers"):
        run_chat({"model_name_or_path": str(model_dir), "stage": "rm"})


def test_generation_options_come_from_the_config() -> None:
    config = load_config(
        {"model_name_or_path": "x", "temperature": 0.1, "top_k": -1, "max_new_tokens": 3}, command="chat"
    )
    found = GenerationOptions.from_config(config.generation)
    assert (found.temperature, found.top_k, found.max_new_tokens, found.top_p) == (0.1, 0, 3, 0.7)


@pytest.mark.slow
def test_the_command_answers_a_pipe(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llamafactory", "chat", str(run), "do_sample=false", "max_new_tokens=8"],
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "User:" not in done.stdout
    assert done.stdout.rstrip("\n") == answer({"model_name_or_path": str(run), **GREEDY}).rstrip("\n")
