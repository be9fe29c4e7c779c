"""Templates as values: found by name, complete, and frozen."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from llamafactory.errors import ConfigError
from llamafactory.rendering.template import CONTENT, Template, get_template, templates
from llamafactory.rendering.tools import FORMATS

NEEDED = (
    "alpaca", "chatml", "deepseek3", "deepseekr1", "default", "empty", "gemma", "gemma3", "glm4", "llama2", "llama3",
    "mistral", "phi4", "qwen", "qwen3", "qwen3_nothink", "vicuna",
)  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_the_template_exists_under_its_name(name: str) -> None:
    assert get_template(name).name == name


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"template: 'lama3' is not a known.*did you mean 'llama3'.*template show"):
        get_template("lama3")


def test_templates_cannot_be_changed() -> None:
    template = get_template("qwen")
    with pytest.raises(FrozenInstanceError):
        template.default_system = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        templates()["qwen"] = template  # type: ignore[index]


def test_every_template_names_a_tool_format_that_exists() -> None:
    assert {template.tool_format for template in templates().values()} <= set(FORMATS.names())


def test_every_tool_format_exports_what_a_format_needs() -> None:
    for name in FORMATS.names():
        FORMATS.load(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": ("no place for the text",)}, "user must hold CONTENT once"),
        ({"assistant": (CONTENT, CONTENT)}, "assistant must hold CONTENT once"),
        ({"prefix": (CONTENT,)}, "prefix cannot hold CONTENT"),
    ],
)
def test_a_slot_that_loses_or_repeats_the_message_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(get_template("qwen"), **changes)


def test_an_empty_thought_is_both_words_unless_said_otherwise() -> None:
    template = Template("t", user=(CONTENT,), assistant=(CONTENT,), thought_words=("<a>", "</a>"))
    assert template.no_thought == "<a></a>"
    assert replace(template, empty_thought="</a>").no_thought == "</a>"
