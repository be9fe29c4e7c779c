"""Words: no catch-all names in the code, no registry hosts or machine paths in any tracked file."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
VAGUE_FILE = re.compile(r"(^|_)(utils?|misc|helpers?|managers?|common)($|_)")
VAGUE_NAME = re.compile(r"(^|_)(utils?|misc|helpers?|manager|common)($|_)|Utils?$|Helper|Manager|Misc$")

# Built from pieces so that this file does not hold what it looks for.
HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "conda" + ".anaconda", "npmjs" + ".org"]
REGISTRY = re.compile("|".join(re.escape(host) for host in HOSTS) + r"|//mirrors?\.")
MACHINE = re.compile(r"(?<![\w.~-])/(" + "|".join(["work", "root", "home", "Users"]) + r")/\w+|/opt/" + "(wheels|pypi)")
TEXT_SUFFIXES = {"", ".cfg", ".ini", ".js", ".json", ".jsonl", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def tracked_files() -> list[Path]:
    """Files git knows; everything below the source folders when this is not a checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        folders = ("src", "tests", "docs", "examples", "benchmarks", "scripts", "data")
        files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in files if path.is_file() and path.suffix in TEXT_SUFFIXES]


def vague_names(source: str) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name for node in ast.walk(ast.parse(source)) if isinstance(node, kinds) and VAGUE_NAME.search(node.name)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_names_say_something(path: Path) -> None:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    assert not [part for part in parts if VAGUE_FILE.search(part)]
    assert vague_names(path.read_text(encoding="utf-8")) == []


def test_vague_names_are_found() -> None:
    assert vague_names("class CacheManager: ...\ndef load_utils(): ...\ndef merge(): ...") == [
        "CacheManager",
        "load_utils",
    ]


def test_no_registry_hosts_and_no_machine_paths() -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if REGISTRY.search(line) or MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_patterns_match_what_they_should() -> None:
    assert REGISTRY.search("https://" + HOSTS[0] + "/simple")
    assert MACHINE.search("cd /" + "root/project")
    assert not MACHINE.search("see docs/" + "work/flow and src/" + "home/page")
