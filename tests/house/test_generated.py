"""The generated parts of the documentation are up to date."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "generate_docs.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_are_up_to_date() -> None:
    result = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + "run: python scripts/generate_docs.py"


def test_every_option_is_documented(generator: ModuleType) -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    for section in generator.section_types().values():
        assert [name for name in section.model_fields if name != "extra" and f"| `{name}` |" not in page] == []


def test_stale_block_is_replaced(generator: ModuleType) -> None:
    text = "before\n<!-- generated: options -->\nSTALE\n<!-- end of options -->\nafter\n"
    filled = generator.fill(text)
    assert "STALE" not in filled and "`learning_rate`" in filled
    assert filled.startswith("before\n") and filled.endswith("\nafter\n")


def test_unknown_block_is_an_error(generator: ModuleType) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        generator.fill("<!-- generated: nonsense -->\n<!-- end of nonsense -->")
