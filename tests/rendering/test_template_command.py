"""`template show` and `template check`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.errors import ConfigError, ModelError
from llamafactory.recipes import template as template_command
from llamafactory.recipes.template import check, show
from llamafactory.rendering.template import templates

ROOT = Path(__file__).parents[2]


def test_show_lists_all_templates(capsys: pytest.CaptureFixture[str]) -> None:
    show([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in templates())


def test_show_prints_slots_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    show(["llama3"])
    shown = capsys.readouterr().out
    assert "user         '<|start_header_id|>user<|end_header_id|>\\n\\n' {content} '<|eot_id|>'" in shown
    assert "stop words   <|eot_id|> <|eom_id|>" in shown
    assert "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>" in shown


def test_check_prints_a_table_and_is_content(capsys: pytest.CaptureFixture[str]) -> None:
    check(["qwen3"])
    shown = capsys.readouterr().out
    assert "qwen3" in shown
    assert "10 equal; opened: thinking left open" in shown
    assert "differs" not in shown


def test_check_takes_a_tokenizer_from_a_folder(saved_tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(["chatml", "--tokenizer", saved_tokenizer])
    check([f"--tokenizer={saved_tokenizer}", "chatml"])
    assert capsys.readouterr().out.count("chatml") == 2


def test_check_compares_all_templates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    known = {name: templates()[name] for name in ("belle", "chatml")}
    monkeypatch.setattr(template_command, "templates", lambda: known)
    check(["--all"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in known)
    assert "border: the template writes text" in shown


@pytest.mark.slow
def test_all_templates_pass_the_check_and_the_page_says_so() -> None:
    script = ROOT / "scripts" / "generate_conformance.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr + "run: python scripts/generate_conformance.py"
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | " in page for name in templates())
    assert ", 0 differ." in page


def test_a_difference_is_an_error_that_names_the_case(
    monkeypatch: pytest.MonkeyPatch, saved_tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from llamafactory.rendering import jinja

    monkeypatch.setattr(jinja, "_HEAD", jinja._HEAD.replace("messages[0].content", "messages[0].content ~ '!'"))
    with pytest.raises(
        ModelError, match=r"template check: .* differ, the first is chatml, system: .*served other tokens"
    ):
        check(["chatml", "--tokenizer", saved_tokenizer])
    assert "differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokeniser", "x"], r"unknown option '--tokeniser'; did you mean '--tokenizer'\?"),
        (["--tokenizer"], "--tokenizer needs the folder"),
        (["lama3"], "did you mean 'llama3'"),
    ],
)
def test_wrong_words_are_refused_with_a_hint(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(words)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer transformers can read"):
        check(["chatml", "--tokenizer", str(tmp_path)])


def test_a_real_tokenizer_that_lacks_tokens_still_compares(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    check(["gemma", "--tokenizer", str(tmp_path)])
    assert "gemma" in capsys.readouterr().out
