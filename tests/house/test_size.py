"""Functions, files and argument lists stay small enough to read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
MAX_ARGUMENTS = 8  # aim for six
MAX_POSITIONAL = 5

Function = ast.FunctionDef | ast.AsyncFunctionDef


def num_lines(node: Function) -> int:
    """Lines of a function without its docstring and decorators."""
    first = node.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        docstring = (first.end_lineno or 0) - first.lineno + 1
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def problems(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        if num_lines(node) > MAX_FUNCTION_LINES:
            found.append(f"line {node.lineno}: {node.name} has {num_lines(node)} lines")
        positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in {"self", "cls"}]
        total = len(positional) + len(node.args.kwonlyargs)
        if total > MAX_ARGUMENTS or len(positional) > MAX_POSITIONAL:
            found.append(f"line {node.lineno}: {node.name} takes {total} arguments, {len(positional)} by position")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_size(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_FILE_LINES, "split this file"
    assert problems(source) == []


def test_long_function_is_found() -> None:
    assert problems("def long():\n" + "    x = 1\n" * 61)
    assert problems("def wide(a, b, c, d, e, f): ...")
    assert problems("def wide(*, a, b, c, d, e, f, g, h, i): ...")
    assert not problems('def short():\n    """' + "\n" * 70 + '    """\n    return 1\n')
