"""Cutting a conversation at its front: the latest turns, with the begin token, system prompt and tools before them.

What a template writes before the first message belongs to whatever turn is first, so the turns that stay are rendered
as a conversation of their own. Knows no template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llamafactory.data.truncate import Cut, truncate
from llamafactory.errors import LlamaFactoryError
from llamafactory.rendering.mode import latest_of
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.tokens import Turn

Render = Callable[[Conversation], list[Turn]]


def keep_latest(talk: Conversation, turns: Sequence[Turn], limit: int, policy: str, render: Render) -> Cut | None:
    """Fit `turns`, those of the whole of `talk`, into `limit` tokens by dropping the oldest; `policy` is `prompt` or,
    for the last answer alone to be learnt, `balanced` or `tail`.

    As many turns stay as fit together with what stands before a first message. `balanced` also shortens the turn before
    them, if its frame fits, but not what stands before it. The last turn alone is shortened as a whole conversation
    would be. None when the template refuses to begin with any of the later turns.
    """
    kept = _latest_that_fit(talk, turns, limit, render)
    if kept is None:
        return None
    if _length(kept) > limit:
        return truncate(kept, limit, policy)
    if policy == "balanced":
        older = _render(talk, len(kept) + 1, render)
        if older is not None:
            kept = _shorten_first(older, _num_texts(kept[0]) - _num_texts(turns[-len(kept)]), limit, policy) or kept
    return Cut(tuple(kept), truncated=True)


def _latest_that_fit(talk: Conversation, turns: Sequence[Turn], limit: int, render: Render) -> list[Turn] | None:
    """The most turns that fit, rendered; the last one where none fits, and None where none can be rendered."""
    count = _num_fitting(turns, limit)
    while count > 0:
        kept = _render(talk, count, render)
        if kept is not None and _length(kept) <= limit:
            return kept
        head = 0 if kept is None else _length(kept) - _length(turns[-count:])
        count = min(count - 1, _num_fitting(turns, limit - head))
    return _render(talk, 1, render)


def _num_fitting(turns: Sequence[Turn], limit: int) -> int:
    """How many of the last turns have at most `limit` tokens together."""
    count = 0
    for turn in reversed(turns):
        limit -= len(turn)
        if limit < 0:
            break
        count += 1
    return count


def _render(talk: Conversation, count: int, render: Render) -> list[Turn] | None:
    try:
        return render(latest_of(talk, count))
    except LlamaFactoryError:
        return None


def _shorten_first(turns: Sequence[Turn], num_texts: int, limit: int, policy: str) -> list[Turn]:
    """Shorten the first turn, but not the first `num_texts` texts of its prompt; nothing when it cannot stay."""
    source = turns[0].source
    places = [place for place, piece in enumerate(source) if not piece.control]
    size = places[num_texts - 1] + 1 if num_texts > 0 else 0
    head = source[:size]
    bare = [replace(turns[0], source=source[size:]), *turns[1:]]
    kept = truncate(bare, limit - sum(len(piece.ids) for piece in head), policy, keep_last=True).turns
    if len(kept) < len(turns):
        return []
    return [replace(kept[0], source=(*head, *kept[0].source)), *kept[1:]]


def _num_texts(turn: Turn) -> int:
    return sum(not piece.control for piece in turn.source)


def _length(turns: Sequence[Turn]) -> int:
    return sum(map(len, turns))
