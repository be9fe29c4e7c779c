"""Conversations cut at their front begin like any other: begin token, system prompt and tools stay."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rendering.conftest import Options, byte_level
from transformers import PreTrainedTokenizerFast

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.encode import Encoder, Limits
from llamafactory.data.latest import keep_latest
from llamafactory.data.truncate import truncate
from llamafactory.rendering.mode import latest_of
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer, build_renderer
from llamafactory.rendering.tokens import Tokens, Turn, join

OWN = "the qwen3 export"
NAMES = ("llama3", "qwen3", "llama2", "gemma2", "default", "empty", "chatglm2", "baichuan2", "glm4", "mistral", OWN)
TOOLS = json.dumps([{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}])
SYSTEM = "You are terse and always polite."
texts = st.sampled_from(("hi", "what now, my friend?", "再见\n", "long text " * 6))
rounds = st.lists(st.tuples(texts, texts, st.booleans()), min_size=2, max_size=5)


@pytest.fixture(scope="module")
def renderer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Renderer]:
    folder = tmp_path_factory.mktemp("byte_level")
    byte_level().save_pretrained(folder)

    def build(name: str) -> Renderer:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        if name != OWN:
            return build_renderer(tokenizer, Options(name))
        tokenizer.chat_template = build_renderer(tokenizer, Options("qwen3")).to_jinja()
        return build_renderer(tokenizer, Options())

    return functools.cache(build)


def talk(pairs: Sequence[tuple[str, str, bool]], **fields: str) -> Conversation:
    """Questions and answers; where the third is true, the question is the result of a tool."""
    messages = [
        message
        for at, (asked, told, result) in enumerate(pairs)
        for message in (Message("observation" if result and at else "user", asked), Message("assistant", told))
    ]
    return Conversation(tuple(messages), **fields)


def tokens(turns: Sequence[Turn]) -> Tokens:
    return join(piece for turn in turns for piece in (*turn.source, *turn.target))


def controls(turns: Sequence[Turn]) -> list[tuple[int, ...]]:
    return [piece.ids for piece in turns[0].source if piece.control]


@settings(max_examples=60, deadline=None)
@given(
    pairs=rounds,
    system=st.sampled_from(("", SYSTEM)),
    tools=st.sampled_from(("", TOOLS)),
    name=st.sampled_from(NAMES),
    share=st.floats(0.05, 1.0),
    policy=st.sampled_from(("balanced", "tail", "prompt")),
)
def test_what_is_kept_begins_like_a_conversation(
    renderer_of: Callable[[str], Renderer],
    pairs: list[tuple[str, str, bool]],
    system: str,
    tools: str,
    name: str,
    share: float,
    policy: str,
) -> None:
    render = functools.partial(renderer_of(name).render, mask_history=policy != "prompt")
    conversation = talk(pairs, system=system, tools=tools)
    turns = render(conversation)
    limit = int(share * (sum(map(len, turns)) - 1))
    cut = keep_latest(conversation, turns, limit, policy, render)
    assert cut is not None
    assert cut.truncated
    assert sum(map(len, cut.turns)) <= limit
    if not cut.turns:
        assert truncate(render(latest_of(conversation, 1)), limit, policy).turns == ()
        return
    whole = render(latest_of(conversation, len(cut.turns)))
    if policy != "balanced" or len(cut.turns) == 1:
        alone = truncate(whole, limit, policy).turns if len(cut.turns) == 1 else whole
        assert tokens(cut.turns) == tokens(alone), "the turns that are kept are those of a conversation of their own"
    assert controls(cut.turns)[: len(controls(whole))] == controls(whole) or policy == "balanced"
    if len(cut.turns) > 1:
        assert tokens(cut.turns[1:]) == tokens(whole[1:])
        assert (SYSTEM in text_of(renderer_of(name), cut.turns)) is bool(system)
        assert sum(map(len, render(latest_of(conversation, len(cut.turns) + 1)))) > limit or policy == "balanced"


def text_of(renderer: Renderer, turns: Sequence[Turn]) -> str:
    return "".join(renderer.encoder._backend.decode(tokens(turns).input_ids, skip_special_tokens=False))


@pytest.mark.parametrize("policy", ["prompt", "balanced", "tail"])
def test_begin_token_system_prompt_and_tools_stay(renderer_of: Callable[[str], Renderer], policy: str) -> None:
    renderer = renderer_of("llama3")
    render = functools.partial(renderer.render, mask_history=True)
    conversation = talk([(f"question {at}", f"answer {at}", False) for at in range(4)], system=SYSTEM, tools=TOOLS)
    turns = render(conversation)
    last_two = render(latest_of(conversation, 2))
    cut = keep_latest(conversation, turns, sum(map(len, last_two)) + 1, policy, render)
    assert cut is not None
    assert tokens(cut.turns) == tokens(last_two)
    assert text_of(renderer, cut.turns).startswith(f"<s><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}Cutting")


def test_an_older_turn_is_shortened_but_not_the_system_prompt(renderer_of: Callable[[str], Renderer]) -> None:
    renderer = renderer_of("qwen3")
    render = functools.partial(renderer.render, mask_history=True)
    conversation = talk([("a", "b", False), ("old " * 50, "older " * 50, False), ("new", "now", False)], system=SYSTEM)
    turns = render(conversation)
    limit = sum(map(len, render(latest_of(conversation, 1)))) + 40
    cut = keep_latest(conversation, turns, limit, "balanced", render)
    assert cut is not None
    assert len(cut.turns) == 2
    assert sum(map(len, cut.turns)) == limit
    text = text_of(renderer, cut.turns)
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nold ")
    assert text.endswith(
        "<|im_start|>user\nnew<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nnow<|im_end|>\n"
    )


def test_a_template_that_refuses_to_begin_there_loses_what_stands_before(
    renderer_of: Callable[[str], Renderer],
) -> None:
    conversation = talk([("a", "b", False), ("result", "c", True)], system=SYSTEM)
    renderer = renderer_of("llama3")
    tokenizer = byte_level()
    refuses = "{% if messages | length > 1 and messages[1].role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = refuses + renderer.to_jinja()
    own = build_renderer(tokenizer, Options())
    turns = own.render(conversation)
    assert keep_latest(conversation, turns, len(turns[1]), "prompt", own.render) is None
    assert truncate(turns, len(turns[1]), "prompt").turns == (turns[1],)


@pytest.mark.parametrize("limits", [Limits(70, "prompt"), Limits(70, mask_history=True)])
def test_rows_are_cut_so(
    renderer_of: Callable[[str], Renderer], make_entry: Callable[..., DatasetEntry], limits: Limits
) -> None:
    row = {"instruction": "last", "output": "answer", "system": SYSTEM, "past": [["a " * 30, "b"], ["c", "d"]]}
    entry = make_entry(columns={"history": "past", "system": "system"})
    renderer = renderer_of("llama3")
    [example] = Encoder(entry, "conversation", renderer, limits)([("set.json:1", row)]).examples
    text = renderer.encoder._backend.decode(example.columns["input_ids"], skip_special_tokens=False)
    assert example.truncated
    assert text.startswith(f"<s><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>")
    assert text.endswith("assistant<|end_header_id|>\n\nanswer<|eot_id|>")
