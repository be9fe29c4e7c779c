"""What the README and the documentation tell a reader to type works.

A fenced block with `title="FILE"` is written to FILE; a `bash` block is run, in the order of the page. A block that
cannot run here stands behind `<!-- not run: REASON -->`. Every page starts with data/, examples/, saves/tiny and
saves/quickstart in place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s]+)[^)]*\)")


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    body: str
    runs: bool


def blocks_of(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        indent = match["indent"]
        body = re.sub(rf"^{indent}", "", match["body"], flags=re.MULTILINE) if indent else match["body"]
        found.append(Block(match["language"], title[1] if title else "", body, match["skip"] is None))
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


RUNNABLE = [
    page for page in PAGES if any(b.language == "bash" and b.runs for b in blocks_of(page.read_text(encoding="utf-8")))
]


@pytest.mark.slow
def test_make_quickstart_tells_who_it_is(finished_quickstart: Path) -> None:
    printed = (finished_quickstart / "quickstart.out").read_text(encoding="utf-8")
    assert "I am Lumo, a small assistant trained with llamafactory." in printed
    assert (finished_quickstart / "saves" / "quickstart" / "training_loss.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_commands_of_the_page_run(page: Path, finished_quickstart: Path, programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    shutil.copytree(finished_quickstart, folder, symlinks=True)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "bash" and block.runs:
            command = ["bash", "-euo", "pipefail", "-c", block.body]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block.body}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = [
        match["target"]
        for match in LINK.finditer(text)
        if "://" not in match["target"]
        and not match["target"].startswith("mailto:")
        and not (page.parent / match["target"]).exists()
    ]
    assert broken == []


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.SafeLoader)["nav"]
    listed = {target for entry in menu for target in entry.values()}
    assert listed == {name.relative_to(ROOT / "docs").as_posix() for name in (ROOT / "docs").rglob("*.md")}


def test_blocks_are_found() -> None:
    text = 'x\n```yaml title="a.yaml"\nk: v\n```\n\n<!-- not run: needs a GPU -->\n```bash\nb\n```\n\n```bash\nc\n```\n'
    assert blocks_of(text) == [
        Block("yaml", "a.yaml", "k: v\n", True),
        Block("bash", "", "b\n", False),
        Block("bash", "", "c\n", True),
    ]
