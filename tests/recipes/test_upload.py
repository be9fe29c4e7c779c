"""Uploads through the real hub client to a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recipes.hub_for_tests import Hub

from llamafactory.errors import ModelError
from llamafactory.recipes.upload import upload

PROGRAM = """
import sys
from pathlib import Path
from llamafactory.errors import ModelError
from llamafactory.recipes.upload import upload
folder, repository, token = sys.argv[1:]
try:
    print(upload(Path(folder), repository, token=token, key="export_hub_model_id"))
except ModelError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    (made / "checkpoint-5").mkdir(parents=True)
    for name in (
        "config.json",
        "model.safetensors",
        "README.md",
        "error.json",
        ".hidden",
        "checkpoint-5/optimizer.json",
    ):
        (made / name).write_text(f"content of {name}", encoding="utf-8")
    (made / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")
    return made


def client(hub: Hub, folder: Path, repository: str = "owner/export", token: str = "hf_good") -> tuple[int, str]:
    """Run the upload in a process whose hub client was told where the hub is."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), repository, token],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_folder_arrives_without_what_stays_at_home(hub: Hub, folder: Path) -> None:
    code, printed = client(hub, folder)
    assert code == 0, printed
    assert "owner/export" in printed
    assert hub.created[0]["name"] == "export"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    assert hub.files["config.json"] == b"content of config.json"


def test_a_refused_token_says_what_to_do(hub: Hub, folder: Path) -> None:
    code, printed = client(hub, folder, token="hf_bad")
    assert code == 2
    assert "export_hub_model_id: the upload of" in printed and "hf_hub_token" in printed
    assert "hf_bad" not in printed


def test_a_hub_out_of_reach_is_told_in_one_sentence(hub: Hub, folder: Path) -> None:
    hub.server_close()
    code, printed = client(hub, folder)
    assert code == 2
    assert "the upload of" in printed and "check the token (hf_hub_token) and the network" in printed


def test_a_name_that_is_no_repository_is_refused(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"export_hub_model_id: 'a/b/c' is not a repository name; write it as owner/name"
    ):
        upload(folder, "a/b/c", token="x", key="export_hub_model_id")
