"""Rooms import only from lower floors, and the config room stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", ["config.load", "config.explain", "cli", "parts", "launch", "failure", "about"])
def test_module_is_light(module: str) -> None:
    heavy = ("torch", "transformers", "datasets", "peft", "numpy")
    code = f"import sys, llamafactory.{module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_package_is_light() -> None:
    code = "import sys, llamafactory; print([name for name in sys.modules if name.startswith('llamafactory.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
