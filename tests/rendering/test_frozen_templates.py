"""Every field and slot of every template, against values written down once from the models' own documents.

`data/templates.json`: `facts` are those values, where they are not the usual ones; `ours` is what we state in another
way on purpose, or in addition. A slot is spelled with {{content}}, {{turn}}, {bos}, {eos} and {token X} in it; `user`
and `observation` reach up to where the answer begins.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from llamafactory.rendering.template import THINK, MediaTokens, Part, Placeholder, Slot, Special, Template, templates

FROZEN: Mapping[str, Mapping[str, Mapping[str, object]]] = json.loads(
    (Path(__file__).parent / "data" / "templates.json").read_text(encoding="utf-8")
)
USUAL: Mapping[str, object] = {
    "user": "{{content}}",
    "system": "{{content}}",
    "tools": "{{content}}",
    "prefix": "",
    "generation": "",
    "observation_separator": None,
    "system_style": "block",
    "default_system": "",
    "stop_words": [],
    "thought_words": list(THINK),
    "empty_thought": "".join(THINK),
    "tool_call_words": ["<tool_call>", "</tool_call>"],
    "tool_format": "default",
    "bare_tools": False,
    "text_end": "",
    "efficient_eos": False,
    "replace_eos": False,
    "replace_jinja_template": False,
    "reasoning": False,
    **{f"media {field.name}": field.default for field in dataclasses.fields(MediaTokens)},
}
"""Of a template that says nothing. observation is like user, function like assistant, where they are not given."""


def spell(*slots: Slot | None) -> str:
    return "".join(spell_part(part) for slot in slots for part in slot or ())


def spell_part(part: Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Placeholder):
        return "{{" + part.name + "}}"
    return "{" + (part.name if isinstance(part, Special) else f"token {part.text}") + "}"


def spelled(template: Template) -> dict[str, object]:
    """All fields of a template but its name."""
    after_result = template.generation if template.observation_generation is None else template.observation_generation
    values: dict[str, object] = {
        field.name: getattr(template, field.name) for field in dataclasses.fields(Template) if field.name != "name"
    }
    slots = {
        "user": spell(template.user, template.generation),
        "observation": spell(template.observation or template.user, after_result),
        "function": spell(template.function or template.assistant),
        **{name: spell(getattr(template, name)) for name in ("assistant", "system", "tools", "prefix", "generation")},
    }
    separator = template.observation_separator
    values |= {**slots, "observation_separator": None if separator is None else spell(separator)}
    values["empty_thought"] = template.no_thought
    del values["observation_generation"]
    media = values.pop("media")
    values |= {f"media {field.name}": getattr(media, field.name) for field in dataclasses.fields(MediaTokens)}
    return json.loads(json.dumps(values))


def expected(entry: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    values = {**USUAL, **entry["facts"]}
    values |= entry.get("ours", {})
    values.setdefault("assistant", "{{content}}" if values["efficient_eos"] else "{{content}}{eos}")
    values.setdefault("observation", values["user"])
    values.setdefault("function", values["assistant"])
    return json.loads(json.dumps(values))


def test_every_template_is_written_down() -> None:
    assert sorted(FROZEN) == sorted(templates())


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_all_fields_are_as_written_down(name: str) -> None:
    assert spelled(templates()[name]) == expected(FROZEN[name])
