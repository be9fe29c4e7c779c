"""The Hugging Face hub, against a small real HTTP server on loopback that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILES = {
    "README.md": b"---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en.jsonl\n---\n",
    "en.jsonl": b'{"instruction": "q1", "output": "a1"}\n{"instruction": "q2", "output": "a2"}\n',
    "dataset_info.json": b'{"remote": {"hf_hub_url": "user/data", "subset": "en"}}',
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

READ = """
import sys, json
from pathlib import Path
from llamafactory.data.catalog import load_entries
from llamafactory.data.sources import Access
from llamafactory.data.sources.hf import load
from llamafactory.errors import DataError
entry = load_entries(["set"], {"set": json.loads(sys.argv[1])}, where="registry")[0]
try:
    rows = load(entry, Access(Path(), cache_dir=Path(sys.argv[2]), streaming=sys.argv[3] == "stream"))
    print(json.dumps([rows.fingerprint(), *rows.read()]))
except DataError as error:
    print(json.dumps(str(error)))
"""

REMOTE = """
import sys
from llamafactory.config.run import RunConfig
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.hub import HubConfig
from llamafactory.data.rows import load_records
data = DataConfig(dataset=("remote",), dataset_dir="REMOTE:user/data")
config = RunConfig(data=data, hub=HubConfig(cache_dir=sys.argv[1]))
print([record.messages[1].content for record in load_records(config)])
"""


class Hub(BaseHTTPRequestHandler):
    """Answers the requests for repository facts, trees and files."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/user/data"):
            self._json(self._api(path.removeprefix("/api/datasets/user/data")))
        elif path.startswith("/datasets/user/data/resolve/"):
            self._file(path.split("/", 6)[-1])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        wanted = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self._json([fact for fact in self._tree() if str(fact["path"]) in wanted])

    def _api(self, rest: str) -> object:
        if "/tree/" in rest:
            return self._tree()
        return {"id": "user/data", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES], "private": False,
                "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in FILES.items()
        ]

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        if name not in FILES:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = hashlib.sha1(FILES[name]).hexdigest()
        self._send(FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        start, end = 0, len(content)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end - 1) + 1, end)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a process that talks to the server on loopback; the library reads it at import."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    server.shutdown()
    server.server_close()


def run(code: str, env: dict[str, str], *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "stream"])
def test_subset_of_a_hub_set(hub: dict[str, str], tmp_path: Path, how: str) -> None:
    entry = json.dumps({"hf_hub_url": "user/data", "subset": "en"})
    fingerprint, *rows = json.loads(run(READ, hub, entry, str(tmp_path / "cache"), how))
    assert COMMIT in fingerprint
    assert rows == [
        ["user/data:1", {"instruction": "q1", "output": "a1"}],
        ["user/data:2", {"instruction": "q2", "output": "a2"}],
    ]


@pytest.mark.slow
def test_unknown_subset_is_named(hub: dict[str, str], tmp_path: Path) -> None:
    entry = json.dumps({"hf_hub_url": "user/data", "subset": "fr"})
    message = json.loads(run(READ, hub, entry, str(tmp_path / "cache"), "whole"))
    assert "set: cannot load split 'train' of user/data" in message
    assert "check the id, subset, split and folder" in message


@pytest.mark.slow
def test_registry_on_the_hub(hub: dict[str, str], tmp_path: Path) -> None:
    assert run(REMOTE, hub, str(tmp_path / "cache")) == "['a1', 'a2']"
