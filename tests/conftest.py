"""Fixtures shared by all tests: a locally trained tokenizer and a tiny random model. Nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tests import command_server
from transformers import PreTrainedTokenizerFast

from llamafactory.models.starter import build_model, build_tokenizer

torch.set_num_threads(1)

TEXTS = [
    "Who are you? I am a small assistant that lives on this machine.",
    "Name three colours. Red, green and blue.\n\n- one\n- two\n",
    "def add(a, b):\n    return a + b\n",
    "What is the weather in Paris? It is sunny, 21 degrees.",
    "你好，世界。再见 👋 — café naïve",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}',
] * 20

CONTROL_TOKENS = (
    "<pad>", "<s>", "</s>", "<unk>",
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>",
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "<｜User｜>", "<｜Assistant｜>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>",
)  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh byte-level tokenizer that holds the control tokens of every template family under test."""
    return build_tokenizer(
        TEXTS, vocab_size=600, special_tokens=CONTROL_TOKENS, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a 2-layer Llama (hidden 32) and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    build_model(tokenizer, hidden_size=32, num_layers=2, max_length=512).save_pretrained(folder)
    return folder


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def finished_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make quickstart` has run. Made once for all test processes: copy it, never write to it."""
    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "finished_quickstart"
    with FileLock(f"{folder}.lock"):
        if not (folder / "quickstart.out").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _run_quickstart(folder)
    return folder


def _run_quickstart(folder: Path) -> None:
    """Run `make quickstart` in a new folder, with this environment in place of a fresh one."""
    for name in ("data", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "venv").mkdir()
    (folder / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / "venv" / ".installed").touch()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["make", "quickstart", "VENV=venv"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    (folder / "quickstart.out").write_text(result.stdout, encoding="utf-8")


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder with a `llamafactory-cli` that starts at once, see command_server."""
    with tempfile.TemporaryDirectory() as folder, command_server.start(Path(folder)) as found:
        yield found
