"""No shell, no code from data, no pickle, no unsafe YAML, no listening on all interfaces, no text without encoding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("src", "scripts", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)

FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "runs text as code",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "subprocess.getoutput": "starts a shell",
    "subprocess.getstatusoutput": "starts a shell",
    "torch.load": "unpickles",
    "torch.save": "pickles",
    "pickle.load": "unpickles",
    "pickle.loads": "unpickles",
    "joblib.load": "unpickles",
    "dill.load": "unpickles",
    "dill.loads": "unpickles",
    "cloudpickle.load": "unpickles",
    "cloudpickle.loads": "unpickles",
    "pandas.read_pickle": "unpickles",
    "pd.read_pickle": "unpickles",
    "shelve.open": "unpickles",
    "yaml.load_all": "may build any object; use yaml.safe_load_all",
    "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "may build any object",
    "tempfile.mktemp": "is open to a race; use mkstemp",
}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "commands"}
TEXT_CALLS = {"read_text", "write_text"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def check_call(node: ast.Call) -> str | None:
    name = dotted(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN_CALLS:
        return f"{name} {FORBIDDEN_CALLS[name]}"
    for key in ("shell", "allow_pickle"):
        if isinstance(value := keywords.get(key), ast.Constant) and value.value is True:
            return f"{name}({key}=True)"
    if name == "yaml.load" and not any("Safe" in ast.unparse(value) for value in (*keywords.values(), *node.args[1:])):
        return "yaml.load without a safe loader"
    return check_encoding(node, name, keywords)


def check_encoding(node: ast.Call, name: str, keywords: dict[str | None, ast.expr]) -> str | None:
    is_method = isinstance(node.func, ast.Attribute)
    short = node.func.attr if isinstance(node.func, ast.Attribute) else name
    if short in TEXT_CALLS and "encoding" not in keywords and len(node.args) < (1 if short == "read_text" else 2):
        return f"{short} without encoding"
    if name == "open" or (is_method and short == "open" and name.split(".")[0] not in {"os", "fsspec", "Image"}):
        modes = [a.value for a in (*node.args, *keywords.values()) if isinstance(a, ast.Constant)]
        binary = any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in modes)
        if not binary and "encoding" not in keywords:
            return "open without encoding"
    return None


def problems(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        reason: str | None = None
        if isinstance(node, ast.Call):
            reason = check_call(node)
        elif isinstance(node, ast.Import):
            bad = {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
            reason = f"imports {', '.join(sorted(bad))}" if bad else None
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            reason = f"imports from {node.module}"
        elif isinstance(node, ast.Constant) and node.value == ".".join("0000"):
            reason = "names the address of all interfaces"
        if reason:
            found.append(f"line {getattr(node, 'lineno', 0)}: {reason}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_is_safe(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "os.popen('ls')",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "import pickle",
        "from pickle import loads",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "open(path)",
        "open(path, 'w')",
        "path.open()",
        "path.read_text()",
        "path.write_text(text)",
        "host = '" + ".".join("0000") + "'",
    ],
)
def test_bad_source_is_found(source: str) -> None:
    assert problems(source)


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['ls'], check=True)",
        "model.eval()",
        "re.compile('a')",
        "torch.compile(model)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.safe_load(text)",
        "open(path, 'rb')",
        "path.open('wb')",
        "path.open(encoding='utf-8')",
        "path.read_text(encoding='utf-8')",
        "path.write_text(text, encoding='utf-8')",
    ],
)
def test_good_source_passes(source: str) -> None:
    assert problems(source) == []
