"""The command: it says where it listens, ends cleanly, and tells what is missing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.api.servers_for_tests import DEFAULTS, ScriptedEngine

from llamafactory.api.app import create_app
from llamafactory.api.serve import run_api
from llamafactory.api.server import build_server
from llamafactory.api.settings import Settings
from llamafactory.errors import ConfigError, MissingPackageError


@pytest.mark.slow
def test_command_serves_until_ctrl_c(model_dir: Path) -> None:
    words = ["api", f"model_name_or_path={model_dir}", "template=chatml", "do_sample=false", "max_new_tokens=400"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llamafactory", *words],
        env={**os.environ, "API_PORT": "0", "API_MODEL_NAME": "tiny", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving tiny at http://127.0.0.1:"), process.stderr.read()
        url = line.split()[3]
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "Who are you?"}], "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=ask, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith('data: {"id":"chatcmpl-')
            process.send_signal(signal.SIGINT)
            assert [text for text in lines if text]
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "") and "Traceback" not in errors
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()


def test_server_takes_both_signals_and_gives_them_back() -> None:
    server = build_server(create_app(ScriptedEngine(), Settings(), DEFAULTS), Settings())
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in wanted]
    with server.capture_signals():
        assert [signal.getsignal(number) for number in wanted] == [server.handle_exit] * 2
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
    assert [signal.getsignal(number) for number in wanted] == before


def test_missing_package_is_told(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(
        MissingPackageError, match=r"'api' needs the package 'uvicorn'.* pip install 'llamafactory\[serve\]'"
    ):
        run_api({"model_name_or_path": str(model_dir)})


def test_unsafe_settings_are_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_HOST", "192.168.0.7")
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(ConfigError, match="API_HOST"):
        run_api({"model_name_or_path": "no/such/model"})
