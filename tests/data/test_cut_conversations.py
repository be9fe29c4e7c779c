"""Conversations of many templates cut at any length: no split token, no false ending, whole answers learn to stop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.rendering.conftest import Options, byte_level
from transformers import PreTrainedTokenizerFast

from llamafactory.data.truncate import truncate
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer, build_renderer
from llamafactory.rendering.tokens import IGNORE_INDEX, Piece, Turn, join

TAUGHT_BY_THE_NEXT_PROMPT = (
    "aquila", "baichuan", "baichuan2", "bailing", "breeze", "chatglm2", "empty", "falcon", "fewshot", "gpt_oss",
    "hy_dense_1_8b", "hy_dense_7b", "index", "solar", "yayi", "ziya",
)  # fmt: skip
NAMES = (*TAUGHT_BY_THE_NEXT_PROMPT, "chatml", "default", "deepseek3", "gemma2", "llama2", "llama3", "mistral", "qwen3")
texts = st.lists(st.sampled_from(("hi", " there", "<|im_end|>", "</s>", "再见", "\n", "long text " * 5)), max_size=3)
contents = texts.map(lambda parts: "".join(parts) + "z")
answers = st.tuples(contents, contents, st.sampled_from((None, None, 0.0, 0.5)))


@pytest.fixture(scope="module")
def renderer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Renderer]:
    folder = tmp_path_factory.mktemp("byte_level")
    byte_level().save_pretrained(folder)
    return functools.cache(lambda name: build_renderer(PreTrainedTokenizerFast.from_pretrained(folder), Options(name)))


def talk(*rounds: tuple[str, str, float | None], system: str = "") -> Conversation:
    pairs = [(Message("user", asked), Message("assistant", told, loss=loss)) for asked, told, loss in rounds]
    return Conversation(tuple(message for pair in pairs for message in pair), system=system)


def pieces_of(turns: Sequence[Turn]) -> list[Piece]:
    return [piece for turn in turns for piece in (*turn.source, *turn.target)]


def controls(pieces: Sequence[Piece]) -> list[tuple[int, ...]]:
    return [piece.ids for piece in pieces if piece.control]


def text_length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces if not piece.control)


def stops_learnt(turn: Turn, after: Turn | None, stop_ids: Sequence[int]) -> int:
    """How often a kept answer learns to stop: by its own tokens, and by the first token of the next prompt."""
    own = sum(bool(piece.weight) and piece.ids[-1] in stop_ids for piece in turn.target if piece.control)
    return own + sum(bool(piece.weight and piece.labels) for piece in (after.source if after else ()))


@settings(max_examples=200, deadline=None)
@given(
    rounds=st.lists(answers, min_size=1, max_size=4),
    system=st.sampled_from(("", "be nice")),
    name=st.sampled_from(NAMES),
    share=st.floats(0.0, 1.1),
    policy=st.sampled_from(("balanced", "tail", "prompt")),
    keep_last=st.booleans(),
)
@example([("a b c", "d e f", None)] * 3, "", "baichuan2", 0.34, "tail", False)
@example([("a b c", "d e f g h i", 0.5)] * 3, "", "baichuan2", 0.5, "balanced", True)
def test_cut_conversations(
    renderer_of: Callable[[str], Renderer],
    rounds: list[tuple[str, str, float | None]],
    system: str,
    name: str,
    share: float,
    policy: str,
    keep_last: bool,
) -> None:
    renderer = renderer_of(name)
    turns = renderer.render(talk(*rounds, system=system), mask_history=keep_last)
    total = sum(map(len, turns))
    limit = max(1, round(share * total))
    cut = truncate(turns, limit, policy, keep_last=keep_last)
    assert cut.truncated == (total > limit)
    assume(cut.turns)
    kept = cut.turns
    from_end = keep_last or policy == "prompt"
    origins = turns[-len(kept) :] if from_end else turns[: len(kept)]
    losses = [1.0 if loss is None else loss for _, _, loss in rounds]
    if keep_last:
        losses = [loss or 0.0 for _, _, loss in rounds[:-1]] + losses[-1:]
    losses = losses[-len(kept) :] if from_end else losses[: len(kept)]
    for turn, after, origin, loss in zip(kept, (*kept[1:], None), origins, losses, strict=True):
        assert controls(turn.source) == controls(origin.source)
        full = (*origin.target, *origin.stop)
        assert controls(turn.target) == controls(full)[: len(controls(turn.target))]
        stops = stops_learnt(turn, after, renderer.stop_ids)
        if text_length(turn.target) < text_length(origin.target):
            assert stops == 0
        elif len(join(turn.target).input_ids) >= len(join(origin.target).input_ids):
            assert stops == (1 if loss else 0)
    tokens = join(pieces_of(kept))
    learnt = sum(len(piece.ids) for piece in pieces_of(kept) if piece.weight)
    assert len(tokens.input_ids) == len(tokens.labels) == sum(map(len, kept)) <= limit
    assert tokens.num_supervised == learnt
    assert not kept[0].source or tokens.labels[0] == IGNORE_INDEX


@pytest.mark.parametrize("name", TAUGHT_BY_THE_NEXT_PROMPT)
@pytest.mark.parametrize("policy", ["tail", "balanced"])
@pytest.mark.parametrize("spare", [0, 1])
def test_a_whole_answer_learns_to_stop_at_a_turn_border(
    renderer_of: Callable[[str], Renderer], name: str, policy: str, spare: int
) -> None:
    renderer = renderer_of(name)
    first, *more = [("Hi there you", "Hello my friend", None), ("more of this", "again", None), ("last", "bye", None)]
    turns = renderer.render(talk(first, *more))
    kept = truncate(turns, len(turns[0]) + spare, policy).turns
    assert len(kept) == 1
    assert join(pieces_of(kept)).labels[-1] in renderer.stop_ids
    if spare:
        assert join(pieces_of(kept)) == join(pieces_of(renderer.render(talk(first))))


def test_a_stop_of_a_dropped_answer_is_not_learnt(renderer_of: Callable[[str], Renderer]) -> None:
    turns = renderer_of("baichuan2").render(talk(("a", "b", None), ("c", "d", None), ("e", "f", None)))
    assert turns[1].source[0].labels
    kept = truncate(turns, len(turns[1]) + len(turns[2]), "prompt").turns
    assert [len(turn) for turn in kept] == [len(turn) for turn in turns[1:]]
    assert kept[0].source[0].ids == turns[1].source[0].ids
    assert join(pieces_of(kept)).labels[0] == IGNORE_INDEX
    assert kept[1] == turns[2]
