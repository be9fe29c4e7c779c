"""Modelfiles, read back by a reader that follows Ollama's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory.errors import ConfigError
from llamafactory.recipes.modelfile import build_modelfile, quote


def unquote(text: str) -> str | None:
    """The value a finished quotation holds; None while it is unfinished."""
    if text.startswith('"""'):
        return text[3:-3] if len(text) >= 6 and text.endswith('"""') else None
    if text.startswith('"'):
        return text[1:-1] if len(text) >= 2 and text.endswith('"') else None
    return text


def parse(text: str) -> list[tuple[str, str]]:
    """Commands and values: a value ends at the first line break where its quotation is finished."""
    commands: list[tuple[str, str]] = []
    rest = text
    while rest:
        line, _, after = rest.partition("\n")
        if not line.strip() or line.startswith("#"):
            rest = after
            continue
        name, _, rest = rest.partition(" ")
        if name == "PARAMETER":
            parameter, _, rest = rest.partition(" ")
            name = f"PARAMETER {parameter}"
        read = ""
        while rest:
            char, rest = rest[0], rest[1:]
            if char in "\r\n" and unquote(read.strip()) is not None:
                break
            read += char
        value = unquote(read.strip())
        assert value is not None, read
        commands.append((name, value))
    return commands


def test_a_modelfile_holds_everything_in_a_stable_order() -> None:
    text = build_modelfile(
        template="{{ if .System }}<s>{{ .System }}{{ end }}\n{{ .Prompt }}",
        system='Say "hi".',
        stops=["<|im_end|>", "</s>", "<|im_end|>"],
        context_length=2048,
    )
    assert parse(text) == [
        ("FROM", "."),
        ("TEMPLATE", "{{ if .System }}<s>{{ .System }}{{ end }}\n{{ .Prompt }}"),
        ("SYSTEM", 'Say "hi".'),
        ("PARAMETER stop", "<|im_end|>"),
        ("PARAMETER stop", "</s>"),
        ("PARAMETER num_ctx", "2048"),
    ]


def test_empty_parts_are_left_out() -> None:
    assert parse(build_modelfile(template="", system="", stops=[], context_length=None)) == [("FROM", ".")]


@pytest.mark.parametrize(
    "value",
    [
        'x"""\nADAPTER /etc/passwd\n',
        '"""\nFROM evil',
        'a\r"""  \r\nPARAMETER stop x',
        '"""\nb',
    ],
)
def test_a_value_that_would_end_early_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"default_system: a line ends with three quotation marks"):
        build_modelfile(template="", system=value, stops=[], context_length=None)


@given(st.text(alphabet=st.sampled_from("a\"\n\r \t{}'#\\é"), max_size=14))
def test_any_value_is_read_back_unchanged_or_refused(value: str) -> None:
    try:
        text = build_modelfile(template="", system=value, stops=["<eos>"], context_length=None)
    except ConfigError:
        return
    expected = [("SYSTEM", value)] if value else []
    assert parse(text) == [("FROM", "."), *expected, ("PARAMETER stop", "<eos>")]


@pytest.mark.parametrize("value", ['say """ inside', 'ends with "', '"starts', "  spaces  ", '""', '"'])
def test_quotes_inside_survive(value: str) -> None:
    assert unquote(quote(value, "x")) == value
