"""Vendors' own chat templates, as TRL's package ships them, against our rendering, token by token.

What differs on purpose is data: `data/vendor_templates.yaml`. TRL is only a folder of files here, nothing is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.errors import ConfigError, DataError
from llamafactory.models.starter import build_tokenizer
from llamafactory.rendering.calls import read_tools
from llamafactory.rendering.conformance import cases, chat_messages
from llamafactory.rendering.control_tokens import control_tokens
from llamafactory.rendering.records import Conversation, Feedback, Message
from llamafactory.rendering.renderer import DEFAULT_DATE, Renderer, build_renderer
from llamafactory.rendering.template import get_template

PARTS = ("whole", "prompt")
TEXTS = ("How are you? I am fine! 1+1? It is 2.\n\n- one\n Bye 再见 {} \"quotes\" 'here' <think>",)


@dataclass(frozen=True)
class Vendor:
    """One file of the vendors, see `data/vendor_templates.yaml`."""

    file: str
    eos: str
    bos: str | None = None
    templates: Sequence[str] = ()
    variables: Mapping[str, object] = field(default_factory=dict)
    refuses: Sequence[str] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    edits: Sequence[Mapping[str, Any]] = ()
    own_refuses: Sequence[str] = ()
    own_adds_end: bool = False
    thoughts: str = ""


VENDORS = [
    Vendor(**entry)
    for entry in yaml.safe_load((Path(__file__).parent / "data" / "vendor_templates.yaml").read_text("utf-8"))
]
PAIRS = [pytest.param(vendor, name, id=f"{vendor.file}-{name}") for vendor in VENDORS for name in vendor.templates]
OWN = [pytest.param(vendor, id=vendor.file, marks=[] if vendor.templates else [pytest.mark.slow]) for vendor in VENDORS]


@pytest.fixture(scope="session")
def sources() -> Mapping[str, str]:
    """The vendors' templates by file name; those TRL changed for training are left out."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("trl is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    files = (file for file in folder.glob("*.jinja") if not file.stem.endswith("_training"))
    return {file.stem: file.read_text("utf-8") for file in files}


@functools.cache
def conversations() -> Mapping[str, Conversation]:
    known = cases()
    tools = known["tools"].tools
    talk = (Message("user", "Hi"), Message("assistant", "Hello."))
    chat = (*talk, Message("user", "1+1?\nExplain."), Message("assistant", "It is 2.\n\n- one"))
    two = json.dumps([{"name": "get_weather", "arguments": {"city": city}} for city in ("Oslo", "Rom")])
    results = (Message("observation", '{"temp": 3}'), Message("observation", '{"temp": 25}'))
    asked = Message("user", "Weather?")
    return {
        "single": known["single"],
        "system": known["system"],
        "multi-turn": Conversation(chat, system="Sys."),
        "blanks": Conversation((Message("user", " Hi\n"), Message("assistant", "Hello. \n"))),
        "thinking": known["thinking"],
        "tools": known["tools"],
        "tools, no system": Conversation(talk, tools=tools),
        "tool call": known["tool calls"],
        "parallel calls": Conversation(
            (asked, Message("function", two), *results, Message("assistant", "3 and 25.")), tools=tools
        ),
    }


def tokenizer_for(vendor: Vendor, name: str) -> PreTrainedTokenizerFast:
    names = dict.fromkeys((*filter(None, (vendor.bos, vendor.eos, "<pad>")), *control_tokens(get_template(name))))
    return build_tokenizer(
        TEXTS, vocab_size=400, special_tokens=list(names), bos_token=vendor.bos, eos_token=vendor.eos, pad_token="<pad>"
    )


def vendor_text(
    tokenizer: PreTrainedTokenizerFast,
    source: str,
    conversation: Conversation,
    part: str,
    *,
    field: str = "",
    **variables: object,
) -> str:
    if part == "prompt":
        conversation = replace(conversation, messages=conversation.messages[:-1])
    return tokenizer.apply_chat_template(
        [with_thought_in(field, message) for message in chat_messages(conversation)],
        tools=[dict(tool) for tool in read_tools(conversation.tools, "")] or None,
        chat_template=source,
        add_generation_prompt=part == "prompt",
        tokenize=False,
        **variables,
    )


def with_thought_in(field: str, message: dict[str, object]) -> dict[str, object]:
    """The message with its thought in this field, as serving engines hand it over."""
    found = re.fullmatch(r"<think>\n(.*)\n</think>\n\n(.*)", str(message["content"]), re.DOTALL) if field else None
    return {**message, field: found[1], "content": found[2]} if found else message


def our_ids(renderer: Renderer, conversation: Conversation, part: str) -> list[int]:
    if part == "prompt":
        return renderer.prompt_ids(replace(conversation, messages=conversation.messages[:-1]))
    [[turn]] = renderer.encode([Feedback(conversation, desirable=True)])
    assert not any(piece.weight for piece in turn.source), "a part of the prompt would be learnt"
    return [token for piece in (*turn.source, *turn.target) for token in piece.ids]


def edited(text: str, vendor: Vendor, part: str, thinking: bool, used: set[int]) -> str:
    for index, edit in enumerate(vendor.edits):
        if edit.get("part", part) == part and edit.get("thinking", thinking) is thinking:
            changed = re.sub(edit["from"], edit["to"], text, count=0, flags=re.DOTALL)
            used |= {index} if changed != text else set()
            text = changed
    return text


@pytest.mark.parametrize(("vendor", "name"), PAIRS)
def test_rendering_is_the_vendors_but_for_the_listed_edits(
    vendor: Vendor, name: str, sources: Mapping[str, str]
) -> None:
    used: set[int] = set()
    found: dict[str, list[str]] = {}
    reasoning = get_template(name).reasoning
    for thinking in (True, False) if reasoning else (True,):
        tokenizer = tokenizer_for(vendor, name)
        renderer = build_renderer(tokenizer, TemplateConfig(template=name, enable_thinking=thinking))
        exported = renderer.to_jinja()
        variables = {**vendor.variables, **({"enable_thinking": thinking} if reasoning else {})}
        render = functools.partial(vendor_text, tokenizer, **variables)
        for case, conversation in conversations().items():
            if case in vendor.refuses:
                with pytest.raises((jinja2.TemplateError, TypeError)):
                    render(sources[vendor.file], conversation, "whole")
                continue
            for part in PARTS:
                theirs = render(sources[vendor.file], conversation, part)
                if case not in vendor.apart:
                    theirs = edited(theirs, vendor, part, thinking, used)
                ours = our_ids(renderer, conversation, part)
                same = ours == tokenizer(theirs, add_special_tokens=False)["input_ids"]
                if case in vendor.apart:
                    found.setdefault(case, []).append("same" if same else "apart")
                    continue
                assert tokenizer.decode(ours) == theirs, f"{case}, {part}, thinking {thinking}"
                assert same, f"{case}, {part}, thinking {thinking}"
                assert render(exported, conversation, part) == theirs
    assert [vendor.edits[index] for index in range(len(vendor.edits)) if index not in used] == [], "edits without use"
    assert [case for case, results in found.items() if "apart" not in results] == [], "cases that do not differ"


def test_every_vendor_template_is_listed(sources: Mapping[str, str]) -> None:
    assert sorted({vendor.file for vendor in VENDORS}) == sorted(sources)


@pytest.mark.parametrize("vendor", OWN)
def test_a_tokenizers_own_template_trains_on_what_it_writes(vendor: Vendor, sources: Mapping[str, str]) -> None:
    source = sources[vendor.file]
    tokenizer = tokenizer_for(vendor, vendor.templates[0] if vendor.templates else "chatml")
    tokenizer.chat_template = source
    dated = re.sub(r"strftime_now\([^)]*\)", repr(DEFAULT_DATE), source)
    refused, num_equal = set[str](), 0
    for thinking in (True, False) if "enable_thinking" in source else (True,):
        try:
            renderer = build_renderer(tokenizer, TemplateConfig(enable_thinking=thinking))
        except ConfigError:
            assert vendor.own_refuses == "all"
            return
        for case, conversation in conversations().items():
            for part in PARTS:
                try:
                    theirs = vendor_text(
                        tokenizer, dated, conversation, part, field=vendor.thoughts, enable_thinking=thinking
                    )
                    ours = our_ids(renderer, conversation, part)
                except (jinja2.TemplateError, TypeError):
                    continue
                except DataError:
                    refused.add(case)
                    continue
                expected = tokenizer(theirs, add_special_tokens=False)["input_ids"]
                end = [tokenizer.eos_token_id] * (vendor.own_adds_end and part == "whole")
                assert ours == expected + end, f"{case}, {part}, thinking {thinking}"
                num_equal += 1
    assert num_equal >= 6
    assert refused == set(vendor.own_refuses)
