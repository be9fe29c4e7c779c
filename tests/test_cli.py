"""The program: quick, light, and exact about exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llamafactory
from llamafactory import cli
from llamafactory.errors import ConfigError

RUN = "model_name_or_path: m\ndataset: d\ndo_train: true\noutput_dir: o\n"
LIGHT = [["--help"], [], ["version"], ["--version"], ["train", "--help"], ["help", "chat"], ["schema"], ["check"]]

# Runs the program with a hook that refuses heavy packages, and prints the processor time it took.
GUARDED = """
import sys, time
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "datasets", "accelerate", "numpy", "subprocess"}:
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Refuse())
from llamafactory.cli import main
code = main(sys.argv[1:])
sys.stderr.write(f"seconds {time.process_time()}")
sys.exit(code)
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


def run(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamafactory", *words]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, check=False, cwd=cwd, env=variables, encoding="utf-8")


def processor_seconds(code: str, *words: str) -> float:
    """The least of three runs: other programs on the machine slow a process down, none makes it quicker."""
    seconds = []
    for _ in range(3):
        found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        seconds.append(float(found.stderr.rpartition(" ")[2]))
    return min(seconds)


@pytest.fixture(scope="module")
def yardstick() -> float:
    """Seconds that importing the two libraries of every light command takes on this machine."""
    report = "sys.stderr.write(f'seconds {time.process_time()}')"
    return processor_seconds(f"import sys, time, pydantic, yaml; pydantic.BaseModel; {report}")


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_command_is_quick_and_imports_nothing_heavy(words: list[str], run_file: Path, yardstick: float) -> None:
    words = [*words, str(run_file)] if words == ["check"] else words
    assert processor_seconds(GUARDED, *words) < 4 * yardstick


def test_check_tells_of_a_template_that_contradicts_the_model(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct\ntemplate: llama3\n", encoding="utf-8")
    words = ["check", str(file), "--command", "chat"]
    found = subprocess.run([sys.executable, "-c", GUARDED, *words], capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stdout == ""
    assert f"template: 'llama3' ({file}:2) is not what Qwen2.5-0.5B-Instruct was trained with" in found.stderr
    words.append("template=qwen")
    found = subprocess.run([sys.executable, "-c", GUARDED, *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "template" in found.stdout, found.stderr


def test_guard_sees_heavy_imports() -> None:
    code = GUARDED.replace("from llamafactory.cli import main", "import torch")
    assert "imported torch" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_train_help_starts_no_process_group(tmp_path: Path) -> None:
    found = run("train", "--help", cwd=tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert found.returncode == 0 and "--learning_rate X" in found.stdout and found.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_version() -> None:
    assert run("version").stdout == f"llamafactory {llamafactory.__version__}\n"


def test_help_of_init_lists_what_init_takes(capsys: pytest.CaptureFixture[str]) -> None:
    from llamafactory.recipes import init

    assert cli.main(["init", "--help"]) == 0
    printed = capsys.readouterr().out
    taken = vars(init._parse(["x"]))
    assert {"data_dir", "hidden_size", "seed"} <= taken.keys()
    for key, default in taken.items():
        line = next(
            line for line in printed.splitlines() if line.startswith(f"  --{key} " if key != "folder" else "  DIR")
        )
        assert key == "folder" or line.endswith(f"default {default}")


def test_help_lists_every_command() -> None:
    text = run("help").stdout
    assert all(name in text for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "command 'trian': there is none of this name; did you mean 'train'?"),
        (["data"], "command 'data': got nothing, expected one of preview, check, stats, build"),
        (
            ["data", "previw"],
            "command 'data': got 'previw', expected one of preview, check, stats, build; did you mean",
        ),
        (["train"], "command 'train': no configuration given; write: llamafactory-cli train run.yaml"),
        (["train", "gone.yaml"], "gone.yaml: cannot be read"),
        (["check"], "check: no file given"),
        (["check", "x.yaml", "--command", "trian"], "check: --command: got 'trian', expected one of"),
        (["schema", "x"], "schema: takes no arguments, got 'x'"),
        (["version", "x"], "version: takes no arguments, got 'x'"),
        (["data", "preview", "--limit", "zero"], "--limit: got 'zero', expected a whole number > 0 (examples)"),
        (
            ["data", "preview", "--format=htm"],
            "--format: got 'htm', expected one of text, html, json; did you",
        ),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and printed.out == ""


def test_command_of_a_later_version_says_so() -> None:
    missing = [name for name in cli.COMMANDS if "not in this version yet" in cli._doc(name)]
    for name in missing:
        found = run(*name.split(), "x.yaml")
        assert found.returncode == 2
        assert found.stderr.startswith(f"command '{name}': this version does not have it yet")


def test_check_shows_the_config_and_refuses_a_wrong_one(run_file: Path) -> None:
    good = run("check", str(run_file), "lora_rank=4", "--use-rslora")
    assert good.returncode == 0 and f"{run_file}: valid for the command 'train', 6 values changed" in good.stdout
    bad = run("check", str(run_file), "lora_rnak=4", "cutoff_len=x")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.splitlines() == [
        f"{run_file}: 2 faults",
        "  argument 'lora_rnak': lora_rnak: unknown option; did you mean 'lora_rank'?",
        "  argument 'cutoff_len': cutoff_len: got 'x', expected a whole number > 0 (tokens)",
    ]


def test_check_for_another_command(run_file: Path) -> None:
    found = run("check", str(run_file), "--command", "chat")
    assert found.returncode == 2 and "do_train: belongs to the command 'train', not to 'chat'" in found.stderr
    assert run("check", "model_name_or_path=m", "--all", "--command=chat").returncode == 0


def test_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["title"] == "llamafactory configuration"


def test_old_code_page_shows_what_it_cannot_print(run_file: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "llamafactory", "check", str(run_file), "default_system=😀 hi"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp936"},
    )  # fmt: skip
    assert found.returncode == 0 and rb"\U0001f600 hi" in found.stdout


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fp8_backend=te", "this version cannot run FP8 through this package yet"),
        ("lora_rnak=4", "did you mean 'lora_rank'?"),
    ],
)
def test_train_refuses_before_it_imports_or_starts_anything(run_file: Path, word: str, message: str) -> None:
    guarded = GUARDED.replace(', "subprocess"', "")
    command = [sys.executable, "-c", guarded, "train", str(run_file), word]
    found = subprocess.run(command, capture_output=True, text=True, cwd=run_file.parent, check=False)
    assert found.returncode == 2 and message in found.stderr and "Traceback" not in found.stderr
    assert not (run_file.parent / "o").exists()


def test_train_asks_the_launcher(run_file: Path) -> None:
    found = run("train", str(run_file), cwd=run_file.parent, FORCE_TORCHRUN="1", NNODES="many", NPROC_PER_NODE="1")
    assert found.returncode == 2 and "NNODES" in found.stderr and "Traceback" not in found.stderr


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ending(error: BaseException | int) -> None:
        def command(words: list[str]) -> int:
            if isinstance(error, BaseException):
                raise error
            return error

        monkeypatch.setattr(cli, "_load", lambda found: command)

    ending(ConfigError("a mistake"))
    assert cli.main(["version"]) == 2 and capsys.readouterr().err == "a mistake\n"
    ending(KeyboardInterrupt())
    assert cli.main(["version"]) == 130
    ending(7)
    assert cli.main(["version"]) == 7
    ending(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["version"])


def test_flags_of_data_commands_are_handed_over() -> None:
    words = ["run.yaml", "--limit", "3", "lora_rank=4", "--format=json"]
    assert cli._take_flags("data preview", cli.LOOK, words) == {"limit": 3, "format": "json"}
    assert words == ["run.yaml", "lora_rank=4"]
    assert cli._take_flags("data build", (), ["--limit", "3"]) == {}


def test_public_names_load_on_demand() -> None:
    code = (
        "import sys, llamafactory\n"
        "assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "from llamafactory import load_config\n"
        "assert load_config({'model_name_or_path': 'm'}, 'chat').model.model_name_or_path == 'm'\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = llamafactory.nonsense  # type: ignore[attr-defined]


@pytest.mark.slow
def test_environment_is_told() -> None:
    found = run("env")
    assert found.returncode == 0
    for name in ("llamafactory", "python", "torch", "transformers", "accelerator"):
        assert f"{name}:" in found.stdout
