"""The public Python names work as the documentation shows them, and importing the package stays light."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llamafactory

ROOT = Path(__file__).parents[2]


def test_the_documented_program_trains_and_answers(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    block = re.search(r'```python title="who.py"\n(.*?)```', page, re.DOTALL)
    assert block is not None
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "identity.json", tmp_path / "data")
    shutil.copytree(model_dir, tmp_path / "saves" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))
    program = compile(block[1], "who.py", "exec")
    exec(program, {})
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[0]) > 0
    assert printed[-1].endswith(("stop", "length"))


def test_public_names_are_found_when_asked_for() -> None:
    for name in llamafactory.__all__:
        assert getattr(llamafactory, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'run_trian'"):
        llamafactory.run_trian  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, llamafactory; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
