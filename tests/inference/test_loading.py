"""Templates whose control tokens a model's tokenizer does not hold."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llamafactory import logs
from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.inference.loading import load_renderer
from llamafactory.models.starter import CHAT_TOKENS, build_tokenizer
from llamafactory.rendering.renderer import Renderer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logs.notice.cache_clear()
    monkeypatch.setattr(logging.getLogger("llamafactory"), "propagate", True)
    return caplog


def render_with(folder: Path, *, own: str | None, **keys: object) -> Renderer:
    """The renderer of a model whose tokenizer holds the control tokens of ChatML, and `own` as its chat template."""
    tokenizer = build_tokenizer(["hello"], vocab_size=300, special_tokens=CHAT_TOKENS)
    tokenizer.chat_template = own
    tokenizer.save_pretrained(folder)
    config = load_config({"model_name_or_path": str(folder), **keys}, command="chat")
    return load_renderer(config)[1]


def test_markup_a_chat_model_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        render_with(tmp_path, own=CHATML, template="llama3")
    assert str(caught.value) == (
        "template: 'llama3' is written with tokens that this model's tokenizer lacks: it reads <|start_header_id|>, "
        "<|end_header_id|> as plain text and gets <|eot_id|>, <|eom_id|> as tokens the model has never seen, while its "
        "own chat template is written otherwise; leave the key out (options) to use that one, name the "
        "tokens in add_special_tokens to teach them, or set allow_template_mismatch: true"
    )


def test_it_can_be_allowed_and_is_told(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    renderer = render_with(tmp_path, own=CHATML, template="llama3", allow_template_mismatch=True)
    assert renderer.name == "llama3"
    assert "lacks: it reads <|start_header_id|>, <|end_header_id|> as plain text" in told.text


@pytest.mark.parametrize("keys", [{"template": "chatml"}, {"template": "default"}, {}], ids=str)
def test_markup_the_tokenizer_holds_is_not_talked_about(
    keys: dict[str, str], tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    render_with(tmp_path, own=CHATML, **keys)
    assert "tokenizer lacks" not in told.text


def test_tokens_can_be_added(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    renderer = render_with(tmp_path, own=CHATML, template="llama3", add_special_tokens=",".join(LLAMA3))
    assert "tokenizer lacks" not in told.text
    assert all(renderer.encoder.find_token(token) is not None for token in LLAMA3)


def test_a_base_model_learns_markup_and_is_told(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    assert render_with(tmp_path, own=None, template="llama3").name == "llama3"
    assert "gets <|eot_id|>, <|eom_id|> as tokens the model has never seen; is it the model's template?" in told.text


def test_markup_that_the_own_template_spells_as_text_is_the_models(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    own = CHATML.replace("<|im_start|>{{ m.role }}", "<|user|><|assistant|><|system|>").replace("<|im_end|>", "")
    assert render_with(tmp_path, own=own, template="zephyr").name == "zephyr"
    assert "tokenizer lacks" not in told.text
