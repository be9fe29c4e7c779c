"""A model hub on loopback that speaks as much of the protocol as an upload needs."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Keeps created repositories and committed files in memory; accepts one token."""

    def __init__(self, token: str = "hf_good") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.created: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        if self.path.startswith("/api/models/"):
            self._send(200, {"id": "owner/export", "sha": "0" * 40, "siblings": []})
        else:
            self._send(404, {"error": "no such page"})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(401, {"error": "Invalid token"})
        elif self.path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._send(200, {"url": f"{self.server.address}/owner/export", "id": "owner/export"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._send(200, {"files": answer})
        elif "/commit/main" in self.path:
            self._commit(body)
        else:
            self._send(404, {"error": "no such page"})

    def _commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        address = f"{self.server.address}/owner/export/commit/1"
        self._send(200, {"commitUrl": address, "commitOid": "1" * 40, "success": True})

    def _note(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return
