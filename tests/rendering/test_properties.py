"""Properties that hold for every conversation: nothing lost, nothing learnt but answers, prompts equal everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llamafactory.rendering.conformance import chat_messages
from llamafactory.rendering.records import Conversation, Feedback, Message, Preference
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import get_template, templates
from llamafactory.rendering.tokens import IGNORE_INDEX, Piece, join

NAMES = list(templates())
SNIPPETS = (
    "hello", " hello ", "\n", "\n\n", " ", "", "<|im_end|>", "<|eot_id|>", "[INST]", "{{content}}", "{% if %}",
    "'quoted'",
    '"q"', "\\n", "<think>", "</think>", "再见 👋", "é", "\t", "</s>", "<s>", "###", "User:", "▁", "\u200b", "{}", "0",
)  # fmt: skip
texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=6), max_size=5).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    count = draw(st.integers(1, 4))
    messages: list[Message] = []
    for _ in range(count):
        messages += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    return Conversation(tuple(messages), system=draw(texts))


relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def renderers(saved_tokenizer: str) -> Callable[[str], tuple[PreTrainedTokenizerFast, Renderer]]:
    from llamafactory.config.sections.template import TemplateConfig
    from llamafactory.rendering.renderer import build_renderer

    @functools.cache
    def build(name: str) -> tuple[PreTrainedTokenizerFast, Renderer]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(saved_tokenizer)
        return tokenizer, build_renderer(tokenizer, TemplateConfig(template=name))

    return build


def flat(parts: object) -> list[int]:
    return [token for piece in parts for token in piece.ids]  # type: ignore[attr-defined]


def spelled(tokenizer: PreTrainedTokenizerFast, pieces: list[Piece]) -> str:
    return tokenizer.decode(flat(pieces))


Renderers = Callable[[str], tuple[PreTrainedTokenizerFast, Renderer]]


@relaxed
@given(conversation=conversations(), name=st.sampled_from(NAMES))
def test_the_tokens_spell_the_text_of_the_exported_template(
    renderers: Renderers, conversation: Conversation, name: str
) -> None:
    tokenizer, renderer = renderers(name)
    turn = renderer.encode([Feedback(conversation, True)])[0][0]
    text = renderer.text(conversation)
    assert spelled(tokenizer, [*turn.source, *turn.target]) == text
    exported = tokenizer.apply_chat_template(
        list(chat_messages(conversation)), chat_template=renderer.to_jinja(), tokenize=False
    )
    assert exported == text


@st.composite
def shapes(draw: st.DrawFn) -> list[Conversation]:
    """Conversations of one shape; weights, tool results and tools come in, some texts are not written as they are."""
    first = draw(conversations())
    roles = [draw(st.sampled_from(["user", "observation"])), "assistant"] * (len(first.messages) // 2)
    losses = draw(st.lists(st.sampled_from([None, 0.0, 0.5]), min_size=len(roles), max_size=len(roles)))
    tools = draw(st.sampled_from(["", '[{"name": "f", "description": "d", "parameters": {"properties": {}}}]']))

    def like() -> Conversation:
        messages = (Message(role, draw(texts), loss=loss) for role, loss in zip(roles, losses, strict=True))
        return Conversation(tuple(messages), system=draw(texts), tools=tools)

    return [like(), like(), like()]


@relaxed
@given(talks=shapes(), name=st.sampled_from(NAMES), mask_history=st.booleans())
def test_texts_filled_into_a_known_shape_are_as_if_written_anew(
    renderers: Renderers, talks: list[Conversation], name: str, mask_history: bool
) -> None:
    _, renderer = renderers(name)
    anew = replace(renderer, skeletons=None)
    for records in (talks, [Feedback(talk, True) for talk in talks]):
        assert renderer.encode(records, mask_history=mask_history) == anew.encode(records, mask_history=mask_history)


@relaxed
@given(conversation=conversations(), name=st.sampled_from(NAMES))
def test_the_prompt_of_inference_is_the_prompt_of_training(
    renderers: Renderers, conversation: Conversation, name: str
) -> None:
    _, renderer = renderers(name)
    prompt = replace(conversation, messages=conversation.messages[:-1])
    assert renderer.prompt_ids(prompt) == flat(renderer.encode([Feedback(conversation, True)])[0][0].source)


@relaxed
@given(conversation=conversations(), name=st.sampled_from([name for name in NAMES if not get_template(name).reasoning]))
def test_multi_turn_training_is_the_same_token_stream(
    renderers: Renderers, conversation: Conversation, name: str
) -> None:
    _, renderer = renderers(name)
    turns = renderer.render(conversation)
    assert len(turns) == len(conversation.messages) // 2
    turn = renderer.encode([Feedback(conversation, True)])[0][0]
    together = [token for item in turns for piece in (*item.source, *item.target) for token in piece.ids]
    assert together == flat([*turn.source, *turn.target])
    assert sum(map(len, turns)) == len(
        join(piece for item in turns for piece in (*item.source, *item.target)).input_ids
    )


@relaxed
@given(conversation=conversations(), name=st.sampled_from(NAMES))
def test_each_answer_is_learnt_whole_and_ends_with_a_stop(
    renderers: Renderers, conversation: Conversation, name: str
) -> None:
    assume(name != "empty" or all(message.content for message in conversation.messages))
    tokenizer, renderer = renderers(name)
    turns = renderer.render(conversation)
    for number, turn in enumerate(turns):
        answer = conversation.messages[2 * number + 1].content
        learnt = [token for piece in turn.target if piece.weight for token in piece.ids]
        assert answer in tokenizer.decode(learnt)
        following = turns[number + 1].source if number + 1 < len(turns) else ()
        labels = join([*turn.target, *following]).labels
        ends = [label for label in labels if label != IGNORE_INDEX]
        assert ends[-1] in renderer.stop_ids
        assert not any(piece.weight and not piece.labels for piece in turn.source)


@relaxed
@given(conversation=conversations(), name=st.sampled_from(NAMES))
def test_message_text_makes_no_control_tokens(renderers: Renderers, conversation: Conversation, name: str) -> None:
    """The control tokens of a conversation are those of the same conversation with harmless texts."""
    tokenizer, renderer = renderers(name)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}

    def controls(item: Conversation) -> list[int]:
        turn = renderer.encode([Feedback(item, True)])[0][0]
        return [token for token in flat([*turn.source, *turn.target]) if token in special]

    harmless = replace(
        conversation,
        messages=tuple(replace(message, content="x") for message in conversation.messages),
        system="x" if conversation.system else "",
    )
    if get_template(name).reasoning:
        return
    assert controls(conversation) == controls(harmless)


@relaxed
@given(conversation=conversations(), other=texts, name=st.sampled_from(NAMES))
def test_a_preference_is_two_answers_to_one_prompt(
    renderers: Renderers, conversation: Conversation, other: str, name: str
) -> None:
    _, renderer = renderers(name)
    prompt = replace(conversation, messages=conversation.messages[:-1])
    chosen, rejected = conversation.messages[-1], Message("assistant", other)
    better, worse = renderer.encode([Preference(prompt, chosen, rejected)])[0]
    again, _ = renderer.encode([Preference(prompt, rejected, chosen)])[0]
    assert better.source is worse.source
    assert flat(worse.target) == flat(again.target)
    assert flat(better.source) == flat(again.source) == renderer.prompt_ids(prompt)
