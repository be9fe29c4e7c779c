"""The models command, and that chat renders a known model's run folder as its training did."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.recipes.artefacts_for_tests import write_run

from llamafactory import cli
from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.inference.artefact import complete
from llamafactory.inference.loading import load_renderer
from llamafactory.recipes.models import run_models
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer

KNOWN = "Qwen/Qwen2.5-0.5B-Instruct"
TALK = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "and you?"))
TALKS = (Conversation(TALK[:1]), Conversation(TALK), Conversation(TALK, system="Be brief."))

# Refuses heavy packages and prints the processor time the command took.
GUARDED = """
import sys, time
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "numpy", "datasets"}:
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Refuse())
from llamafactory.cli import main
code = main(sys.argv[1:])
sys.stderr.write(f"seconds {time.process_time()}")
sys.exit(code)
"""


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_models(words) == 0
    return capsys.readouterr().out


def test_table_shows_ids_template_and_media(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "glm-4.1v").splitlines()
    rows = [line.split() for line in lines if line]
    assert rows[0] == ["name", "template", "reads", "Hugging", "Face", "ModelScope", "Modelers"]
    thinking = [
        "GLM-4.1V-9B-Thinking",
        "glm4v",
        "text+media",
        "zai-org/GLM-4.1V-9B-Thinking",
        "ZhipuAI/GLM-4.1V-9B-Thinking",
    ]
    assert [*thinking, "-"] in rows
    assert lines[-1] == "2 of 754 models"


def test_base_models_show_the_template_of_their_family_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "qwen2.5-0.5B").splitlines()
    assert lines[1].split()[:2] == ["Qwen2.5-0.5B-Instruct", "qwen"]
    assert ["Qwen2.5-0.5B", "(qwen)"] in [line.split()[:2] for line in lines]
    assert "(template): a base model" in lines[-1]


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = printed(capsys, "telechat2-35b-chat", "--format", "json").splitlines()
    assert json.loads(line) == {
        "name": "TeleChat2-35B-Chat",
        "hf": None,
        "ms": "TeleAI/TeleChat2-35B-Nov",
        "om": None,
        "template": "telechat2",
        "family_template": "telechat2",
        "base": False,
        "multimodal": False,
    }
    assert len(printed(capsys, "--format=json").splitlines()) == 754


def test_several_words_must_all_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "AWQ", "qwen2.5-7b", "--format=json").splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["Qwen2.5-7B-Instruct-AWQ"]


def test_without_a_match_the_nearest_names_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "gwen2.5-7b-instuct"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "none of the 754 known models has 'gwen2.5-7b-instuct' in its name or ids" in said.err
    assert "the nearest names are Qwen2.5-7B-Instruct, " in said.err
    with pytest.raises(ConfigError, match="search for a part of a name, such as qwen3"):
        run_models(["0123456789"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--formt", "json"], r"models: unknown option '--formt'; did you mean '--format'\? \(known: --format\)"),
        (["--format", "jsn"], "models --format: got 'jsn', expected one of text, json; did you mean 'json'?"),
        (["--format"], "models --format: got '', expected one of text, json"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_models(words)


def test_command_is_light() -> None:
    seconds = []
    for _ in range(4):
        command = [sys.executable, "-c", GUARDED, "models", "llama"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0 and "Llama-3-8B-Instruct" in found.stdout, found.stderr
        seconds.append(float(found.stderr.rpartition(" ")[2]))
        if seconds[-1] <= 0.5:
            break
    assert min(seconds) <= 0.5


def test_help_tells_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--help"]) == 0
    assert "llamafactory-cli models [SEARCH ...] [--format text|json]" in capsys.readouterr().out


@pytest.fixture
def place(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds a model with a chat template of its own in a folder named like a known model's id."""
    folder = tmp_path / KNOWN
    shutil.copytree(model_dir, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def renderer_of(model: str, **keys: object) -> Renderer:
    return load_renderer(complete(load_config({"model_name_or_path": model, **keys}, command="chat")))[1]


def rendered(renderer: Renderer) -> list[object]:
    """Prompts, learnt tokens with their weights, and stop tokens of a few conversations."""
    turns = renderer.render(Conversation((*TALK, Message("assistant", "fine"))))
    pieces = [piece for turn in turns for piece in (*turn.source, *turn.target)]
    learnt = [(token, piece.weight) for piece in pieces for token in piece.ids]
    return [[renderer.prompt_ids(talk) for talk in TALKS], learnt, renderer.stop_ids]


def test_known_model_is_rendered_with_its_template(place: Path) -> None:
    named, left_out = renderer_of(KNOWN, template="qwen"), renderer_of(KNOWN)
    assert left_out.name == "qwen"
    assert left_out.fingerprint == named.fingerprint
    assert rendered(left_out) == rendered(named)


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_run_folder_is_rendered_as_its_training_was(finetuning_type: str, place: Path) -> None:
    run = write_run(place / "run", Path(KNOWN), template=None, finetuning_type=finetuning_type)
    trained = rendered(renderer_of(KNOWN, template="qwen"))
    assert load_config(str(run / "recipe.yaml"), command="train").template.template is None
    assert rendered(renderer_of(str(run))) == trained


def test_adapter_of_a_hub_id_is_rendered_as_its_training_was(place: Path) -> None:
    run = write_run(place / "run", Path(KNOWN), template=None)
    facts = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    facts["base_model_name_or_path"] = KNOWN
    (run / "adapter_config.json").write_text(json.dumps(facts), encoding="utf-8")
    renderer = renderer_of(str(run))
    assert renderer.name == "qwen"
    assert rendered(renderer) == rendered(renderer_of(KNOWN, template="qwen"))


def test_adapter_of_another_program_keeps_its_own_template(place: Path) -> None:
    run = write_run(place / "run", Path(KNOWN), template="llama3", allow_template_mismatch=True)
    for name in ("recipe.yaml", "base_record.json"):
        Path(run / name).unlink()
    assert renderer_of(KNOWN, adapter_name_or_path=str(run)).name == "tokenizer"
    assert renderer_of(KNOWN).name == "qwen"


def test_allowed_mismatch_holds_for_the_run_folder(place: Path) -> None:
    run = write_run(place / "run", Path(KNOWN), template="llama3", allow_template_mismatch=True)
    assert renderer_of(str(run)).name == "llama3"


def test_data_commands_render_a_known_model_as_its_training_does(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]
    (place / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    entry = {"rows": {"file_name": "rows.json", "formatting": "openai"}}
    (place / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
    words = [f"model_name_or_path={KNOWN}", "dataset=rows", f"dataset_dir={place}"]
    assert cli.main(["data", "preview", *words, "--format", "json"]) == 0
    assert "<|im_start|>" in capsys.readouterr().out
    assert cli.main(["data", "preview", *words, "template=llama3"]) == 2
    assert "set template: qwen, leave the key out, or set allow_template_mismatch: true" in capsys.readouterr().err
