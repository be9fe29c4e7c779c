"""Truncation: the shared rule by its vectors, and promises that hold for any turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.data.truncate import cut_end, cut_prompt, share, truncate
from llamafactory.errors import DataError
from llamafactory.rendering.tokens import Piece, Turn

STOP = 99


def text(length: int, start: int = 1) -> Piece:
    return Piece(tuple(range(start, start + length)), 1.0, control=False)


def control(*ids: int, weight: float = 0.0) -> Piece:
    return Piece(ids, weight, control=True)


def turn(source: int, target: int) -> Turn:
    return Turn((control(90, 91), text(source, 100), control(92)), (text(target, 1000), control(STOP, weight=1.0)))


def ids(turns: tuple[Turn, ...]) -> list[int]:
    return [token for item in turns for piece in (*item.source, *item.target) for token in piece.ids]


@pytest.mark.parametrize(
    ("source", "target", "limit", "expected"),
    [
        (3000, 200, 2048, (1848, 200)),
        (200, 3000, 2048, (200, 1848)),
        (3000, 3000, 2048, (1024, 1024)),
        (10, 10, 2048, (10, 10)),
    ],
)
def test_share(source: int, target: int, limit: int, expected: tuple[int, int]) -> None:
    assert share(source, target, limit) == expected


@pytest.mark.parametrize("policy", ["balanced", "tail", "prompt", "drop", "error"])
def test_what_fits_is_untouched(policy: str) -> None:
    turns = (turn(5, 5), turn(3, 2))
    cut = truncate(turns, sum(map(len, turns)), policy)
    assert cut.turns == turns
    assert not cut.truncated


def test_balanced_cuts_both_and_drops_the_stop_token() -> None:
    cut = truncate([turn(100, 100)], 50, "balanced")
    kept = cut.turns[0]
    assert sum(len(piece.ids) for piece in kept.source) == 26
    assert sum(len(piece.ids) for piece in kept.target) == 24
    assert STOP not in ids(cut.turns)
    assert [piece.ids for piece in kept.source if piece.control] == [(90, 91), (92,)]


def test_balanced_keeps_a_short_answer_with_its_stop_token() -> None:
    cut = truncate([turn(100, 10)], 50, "balanced")
    assert ids(cut.turns)[-11:] == [*range(1000, 1010), STOP]
    assert len(ids(cut.turns)) == 50


def test_balanced_goes_on_turn_by_turn() -> None:
    cut = truncate([turn(5, 5), turn(50, 50), turn(1, 1)], 40, "balanced")
    assert cut.turns[0] == turn(5, 5)
    assert len(cut.turns) == 2
    assert len(ids(cut.turns)) == 40


def test_mask_history_keeps_the_last_turns() -> None:
    turns = [turn(5, 5), turn(6, 6), turn(7, 7)]
    cut = truncate(turns, len(turns[1]) + len(turns[2]), "balanced", keep_last=True)
    assert cut.turns == tuple(turns[1:])


def test_tail_ends_at_a_turn_border() -> None:
    turns = [turn(5, 5), turn(50, 50)]
    assert truncate(turns, 40, "tail").turns == (turns[0],)
    alone = truncate([turn(5, 50)], 40, "tail")
    assert len(ids(alone.turns)) == 40
    assert STOP not in ids(alone.turns)
    assert truncate([turn(50, 5)], 40, "tail").turns == ()


def test_prompt_keeps_answers_whole() -> None:
    turns = [turn(5, 5), turn(50, 10)]
    cut = truncate(turns, 40, "prompt")
    assert len(ids(cut.turns)) == 40
    assert ids(cut.turns)[-11:] == [*range(1000, 1010), STOP]
    assert truncate([turn(5, 50)], 40, "prompt").turns == ()
    assert truncate([turn(50, 5), turn(5, 5)], 20, "prompt").turns == (turn(5, 5),)


def test_drop_and_error() -> None:
    cut = truncate([turn(50, 50)], 40, "drop")
    assert (cut.turns, cut.truncated) == ((), True)
    with pytest.raises(DataError, match=r"a\.json:3: the example has 104 tokens.*cutoff_len 40.*raise cutoff_len"):
        truncate([turn(50, 50)], 40, "error", name="a.json:3")


def test_longest_texts_are_cut_first() -> None:
    pieces = (control(1), text(100, 100), control(2), text(3, 300), control(3))
    cut = cut_prompt(pieces, 20)
    assert [len(piece.ids) for piece in cut] == [1, 14, 1, 3, 1]
    assert cut[3] == pieces[3]
    assert sum(len(piece.ids) for piece in cut_prompt((text(9), text(9), text(9)), 10)) == 10
    assert cut_prompt((control(1, 2), text(5)), 1) == (control(1, 2),)


def test_control_piece_that_does_not_fit_ends_the_answer() -> None:
    assert cut_end((text(3), control(7, 8), text(5)), 4) == (text(3),)
    assert cut_end((text(3), control(7, 8), text(5)), 6) == (text(3), control(7, 8), text(1))


lengths = st.integers(0, 30)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(lengths, lengths), min_size=1, max_size=5),
    st.integers(1, 120),
    st.sampled_from(["balanced", "tail", "prompt", "drop"]),
    st.booleans(),
)
def test_promises(sizes: list[tuple[int, int]], limit: int, policy: str, keep_last: bool) -> None:
    turns = tuple(turn(*size) for size in sizes)
    cut = truncate(turns, limit, policy, keep_last=keep_last)
    assert len(ids(cut.turns)) <= limit
    controls = {piece.ids for original in turns for piece in (*original.source, *original.target) if piece.control}
    for kept in cut.turns:
        assert all(piece.ids in controls for piece in (*kept.source, *kept.target) if piece.control)
        assert kept.target
        answer = [token for piece in kept.target for token in piece.ids]
        whole = [[token for piece in original.target for token in piece.ids] for original in turns]
        assert any(answer == full[: len(answer)] for full in whole)
        if STOP in answer:
            assert answer in whole
    if sum(map(len, turns)) <= limit:
        assert cut.turns == turns
