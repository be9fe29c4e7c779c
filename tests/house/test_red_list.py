"""Names that the supported releases of our libraries removed or renamed must not come back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

KEYWORDS = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing": "activation_checkpointing, or our own switch",
    "group_by_length": "train_sampling_strategy",
    "load_in_4bit": "quantization_config",
    "load_in_8bit": "quantization_config",
    "logging_dir": "the tracker's environment variable",
    "no_cuda": "use_cpu",
    "save_safetensors": "nothing: safetensors is the only format",
    "show_api": "api_visibility",
    "show_copy_button": "buttons",
    "torch_dtype": "dtype",
    "use_fast": "nothing: there is one kind of tokenizer",
    "warmup_ratio": "warmup_steps below 1",
}
ATTRIBUTES = {
    "AutoModelForVision2Seq": "AutoModelForImageTextToText",
    "additional_special_tokens": "extra_special_tokens",
    "batch_encode_plus": "calling the tokenizer",
    "encode_plus": "calling the tokenizer",
    "rope_theta": "rope_parameters",
}
ALLOWED = {("BitsAndBytesConfig", "load_in_4bit"), ("BitsAndBytesConfig", "load_in_8bit")}


def callee(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def problems(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS and (callee(node), keyword.arg) not in ALLOWED:
                    found.append(f"line {node.lineno}: {keyword.arg}= became {KEYWORDS[keyword.arg]}")
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(f"line {node.lineno}: .{node.attr} became {ATTRIBUTES[node.attr]}")
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if any(name.split(".")[0] == "trl" for name in names):
                found.append(f"line {node.lineno}: trl is a test oracle, never a dependency")
            found += [f"line {node.lineno}: {a.name} is gone" for a in node.names if a.name in ATTRIBUTES]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_removed_names(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "load(torch_dtype='auto')",
        "TrainingArguments(warmup_ratio=0.1)",
        "from_pretrained(path, load_in_4bit=True)",
        "tokenizer.encode_plus(text)",
        "config.rope_theta",
        "from trl import DPOTrainer",
        "from transformers import AutoModelForVision2Seq",
    ],
)
def test_removed_names_are_found(source: str) -> None:
    assert problems(source)


def test_current_names_pass() -> None:
    assert problems("load(dtype='auto')\nBitsAndBytesConfig(load_in_4bit=True)\nTABLE = {'warmup_ratio': 1}") == []
