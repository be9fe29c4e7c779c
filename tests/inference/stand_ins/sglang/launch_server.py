"""Answers with the prompt's last token, counting down: the ids last, last - 1 ... as far as asked.

Writes its arguments, every request and every dropped connection as JSON lines to the file that STAND_IN_LOG names. The
model path `.../dies` ends it at once, `.../slow` makes it healthy never; a prompt that starts with id 1 is refused, one
that starts with id 2 gets an error event, one that starts with id 3 never ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOG = Path(os.environ["STAND_IN_LOG"])
ARGUMENTS = dict(zip(sys.argv[1::1], sys.argv[2::1], strict=False))


def note(**facts: object) -> None:
    with LOG.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(facts) + "\n")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503 if os.environ.get("STAND_IN_SLOW") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        note(request=body)
        prompt, first = body["input_ids"], body["input_ids"][0]
        if first == 1:
            self._refuse()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(prompt, first, body)
        except (BrokenPipeError, ConnectionResetError):
            note(dropped=True)

    def _refuse(self) -> None:
        text = json.dumps({"error": {"message": "this request\nis refused"}}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, prompt: list[int], first: int, body: dict) -> None:
        limit = body["sampling_params"]["max_new_tokens"] if first != 3 else 10**6
        made: list[int] = []
        while len(made) < limit:
            made.append(max(prompt[-1] - len(made), 5))
            ids = made[-1:] if "--stream-output" in sys.argv else made
            meta = {"completion_tokens": len(made), "prompt_tokens": len(prompt)}
            if body.get("return_logprob"):
                meta["output_token_logprobs"] = [[-0.5, token, None] for token in made]
                meta["output_top_logprobs"] = [[[-0.5, token, None], [-1.5, 9, None]] for token in made]
            self._event({"output_ids": ids, "meta_info": meta})
            if first == 2 and len(made) == 2:
                self._event({"error": {"message": "out of memory"}})
                return
            time.sleep(0.005)
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def main() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(arguments=sys.argv[1:], pid=os.getpid(), child=child.pid)
    if os.environ.get("STAND_IN_DIES"):
        sys.stderr.write("loading the model\nRuntimeError: no such kernel\n")
        sys.exit(3)
    ThreadingHTTPServer(("127.0.0.1", int(ARGUMENTS["--port"])), Handler).serve_forever()


main()
