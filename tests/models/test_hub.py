"""Where models come from: folders, the hub over HTTP, and the weights that are refused."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafactory.config.sections.hub import HubConfig
from llamafactory.errors import MissingPackageError, ModelError
from llamafactory.models.hub import fetch, is_local

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Canary:
    """Runs code when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.mkdir, (str(self.file),)  # type: ignore[return-value]


def refusal(path: str) -> tuple[int, str] | None:
    """Status and error code for what the test hub does not give."""
    if "/nope" in path:
        return 404, "RevisionNotFound"
    if "org/gated" in path:
        return 403, "GatedRepo"
    return None if "org/tiny" in path else (404, "RepoNotFound")


def content(root: Path, path: str) -> bytes:
    """Body for a path of `org/tiny`: the file tree, the repository's facts, or a file."""
    files = sorted(root.iterdir())
    if path.startswith("/api/models/org/tiny/tree/"):
        sizes = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files]
        return json.dumps(sizes).encode()
    if path.startswith("/api/"):
        names = [{"rfilename": file.name} for file in files]
        return json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode()
    return (root / path.rsplit("/", 1)[-1]).read_bytes()


def make_handler(root: Path, seen: list[str]) -> type[http.server.BaseHTTPRequestHandler]:
    """A server that speaks as much of the hub's protocol as a download needs, for one repository `org/tiny`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            seen.append(path)
            status, code = refusal(path) or (200, "")
            body = b"" if code else content(root, path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{path.rsplit("/", 1)[-1]}"')
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@pytest.fixture
def hub_server(model_dir: Path) -> Iterator[tuple[str, list[str]]]:
    """A loopback hub that serves the tiny model as `org/tiny`; yields its address and the paths asked for."""
    seen: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make_handler(model_dir, seen))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


def run_fetch(requests: list[str], endpoint: str, home: Path, **environment: str) -> list[str]:
    """Load each "name@revision" in one fresh process that talks to `endpoint`; returns one line for each."""
    code = f"""
from llamafactory.config.run import RunConfig
from llamafactory.config.sections.hub import HubConfig
from llamafactory.config.sections.model import ModelConfig
from llamafactory.errors import ModelError
from llamafactory.models.load import load_model
from llamafactory.models.tokenizer import load_tokenizer
for request in {requests!r}:
    name, _, revision = request.partition("@")
    hub = HubConfig(cache_dir={str(home / "cache")!r}, model_revision=revision or "main")
    config = RunConfig(model=ModelConfig(model_name_or_path=name), hub=hub)
    try:
        print("LOADED", load_model(config, load_tokenizer(config), trainable=False).record.base_model)
    except ModelError as error:
        print("REFUSED", error)
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment = {**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    lines = result.stdout.splitlines()
    assert len(lines) == len(requests), result.stderr
    return lines


@pytest.mark.slow
def test_download_then_offline(hub_server: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, seen = hub_server
    wanted = ["org/tiny", "org/none", "org/gated", "org/tiny@nope"]
    loaded, missing, gated, revision = run_fetch(wanted, endpoint, tmp_path)
    assert loaded == "LOADED org/tiny"
    assert "REFUSED model_name_or_path: 'org/none' is neither a folder here nor a model on the hub" in missing
    assert "'org/gated' is gated; accept its licence on the hub and set hf_hub_token" in gated
    assert "'org/tiny' has no revision 'nope'; correct model_revision" in revision
    assert any(path.endswith("/model.safetensors") for path in seen)
    count = len(seen)
    again, absent = run_fetch(["org/tiny", "org/none"], endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert again == "LOADED org/tiny"
    assert "offline mode is on (HF_HUB_OFFLINE)" in absent
    assert len(seen) == count


@pytest.mark.slow
def test_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    (line,) = run_fetch(["org/tiny"], "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="0")
    assert "REFUSED model_name_or_path: 'org/tiny' is not a folder here and the hub could not deliver it" in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"the folder './nowhere' does not exist"),
        ("/no/such/model", r"the folder '/no/such/model' does not exist"),
        ("some/deep/path", r"the folder 'some/deep/path' does not exist"),
        ("two words", r"'two words' is neither a folder here nor a valid hub id"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fetch(name, HubConfig(), key="model_name_or_path")


def test_offline_name_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"'org/absent' .*not in the download cache, and offline mode is on"):
        fetch("org/absent", HubConfig(cache_dir=str(tmp_path)), key="model_name_or_path")


def test_a_file_is_not_a_model(model_dir: Path) -> None:
    with pytest.raises(ModelError, match="is a file, but a folder or a hub id is needed"):
        fetch(str(model_dir / "config.json"), HubConfig(), key="model_name_or_path")


def test_local_names(tmp_path: Path) -> None:
    assert is_local(str(tmp_path))
    assert is_local("./x")
    assert not is_local("org/name")


@pytest.mark.parametrize(
    ("variable", "package"), [("USE_MODELSCOPE_HUB", "modelscope"), ("USE_OPENMIND_HUB", "openmind_hub")]
)
def test_other_hubs_name_their_package(monkeypatch: pytest.MonkeyPatch, variable: str, package: str) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"{variable} needs the package '{package}'.*pip install"):
        fetch("org/name", HubConfig(), key="model_name_or_path")


@pytest.mark.parametrize(
    ("variable", "package", "label"),
    [("USE_MODELSCOPE_HUB", "modelscope", "ModelScope"), ("USE_OPENMIND_HUB", "openmind_hub", "Modelers")],
)
def test_a_failing_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, package: str, label: str
) -> None:
    (tmp_path / f"{package}.py").write_text(
        "def snapshot_download(name, **options):\n    raise OSError('no such model')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelError, match=rf"{label} could not deliver 'org/name' \(no such model\)"):
        fetch("org/name", HubConfig(), key="model_name_or_path")
    sys.modules.pop(package)


@pytest.mark.parametrize(
    ("variable", "package", "revision", "token"),
    [("USE_MODELSCOPE_HUB", "modelscope", "master", "ms"), ("USE_OPENMIND_HUB", "openmind_hub", "main", "om")],
)
def test_other_hubs_are_called_by_their_interface(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model_dir: Path,
    variable: str,
    package: str,
    revision: str,
    token: str,
) -> None:
    (tmp_path / f"{package}.py").write_text(
        "calls = []\n"
        "def snapshot_download(name, *, revision, cache_dir, token, allow_patterns):\n"
        "    calls.append((name, revision, token, allow_patterns))\n"
        f"    return {str(model_dir)!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(variable, "1")
    hub = HubConfig(ms_hub_token="ms", om_hub_token="om")
    assert fetch("org/name", hub, key="model_name_or_path") == model_dir
    name, asked, given, patterns = sys.modules.pop(package).calls[0]
    assert (name, asked, given) == ("org/name", revision, token)
    assert "*.safetensors" in patterns
    assert not {"*.py", "*.bin"} & set(patterns)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_silent(tmp_path: Path, file: str) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ModelError, match=rf"holds only pickled weights \({file}\).*allow_pickle_weights: true"):
        fetch(str(tmp_path), HubConfig(), key="adapter_name_or_path")
    assert not canary.exists()


def test_pickle_beside_safetensors_is_never_opened(load, untied_dir: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for file in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt"):
        (untied_dir / file).write_bytes(pickle.dumps(Canary(canary)))
    load(model_name_or_path=str(untied_dir))
    assert not canary.exists()


def test_training_args_alone_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(ModelError, match="holds no weights"):
        fetch(str(tmp_path), HubConfig(), key="model_name_or_path")


def test_pickled_weights_with_the_flag(load, model_dir: Path, untied_dir: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(untied_dir / "model.safetensors"), untied_dir / "pytorch_model.bin")
    (untied_dir / "model.safetensors").unlink()
    loaded, _, _ = load(model_name_or_path=str(untied_dir), allow_pickle_weights=True)
    assert loaded.record.vocab_size > 0


def test_pickled_canary_with_the_flag_still_does_not_run(load, untied_dir: Path, tmp_path: Path) -> None:
    (untied_dir / "model.safetensors").unlink()
    (untied_dir / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=2))
    with pytest.raises(ModelError, match="damaged or hold more than tensors"):
        load(model_name_or_path=str(untied_dir), allow_pickle_weights=True)
    assert not (tmp_path / "canary").exists()
