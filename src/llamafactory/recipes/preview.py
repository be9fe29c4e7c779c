"""Examples for people: which tokens are learnt, with which weight, what was cut. Text, one HTML page, or JSON lines.

Knows examples and a tokenizer that can write ids as text.
"""

from __future__ import annotations

import difflib
import html
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data.examples import Example
from llamafactory.rendering.tokens import IGNORE_INDEX

_GREEN, _YELLOW, _RED, _DIM, _RESET = "\x1b[32m", "\x1b[33m", "\x1b[31;9m", "\x1b[2m", "\x1b[0m"
_MAX_CUT_SHOWN = 400


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one loss weight; 0 is not learnt. truncated: the example has lost it."""

    text: str
    weight: float
    truncated: bool = False

    @property
    def supervised(self) -> bool:
        return self.weight > 0


@dataclass(frozen=True)
class Side:
    """One token sequence of an example. name: empty, or "chosen" or "rejected". text: without truncated segments."""

    name: str
    text: str
    input_ids: list[int]
    labels: list[int]
    segments: list[Segment]


@dataclass(frozen=True)
class Shown:
    """An example ready to print."""

    index: int
    source: str
    sides: list[Side]
    truncated: bool


def show(example: Example, tokenizer: Any, *, index: int, whole: Example | None = None) -> Shown:
    """Decode an example, its learnt segments and, where `whole` is the same example uncut, what it has lost."""
    names = ("chosen", "rejected") if "chosen_input_ids" in example.columns else ("",)
    sides = []
    for name in names:
        prefix = f"{name}_" if name else ""
        ids, labels = example.columns[f"{prefix}input_ids"], example.columns[f"{prefix}labels"]
        weights = example.weights or [0.0 if label == IGNORE_INDEX else 1.0 for label in labels]
        uncut = _shown_ids(whole or example, prefix)
        if len(labels) != len(ids):  # a prompt and its reference answer
            ids, weights = ids + labels, [0.0] * len(ids) + [1.0] * len(labels)
        segments = list(_segments(tokenizer, ids, weights, lost_runs(ids, uncut)))
        sides.append(Side(name, _decode(tokenizer, ids), ids, labels, segments))
    return Shown(index, example.source, sides, example.truncated)


def _shown_ids(example: Example, prefix: str) -> list[int]:
    ids, labels = example.columns[f"{prefix}input_ids"], example.columns[f"{prefix}labels"]
    return ids + labels if len(labels) != len(ids) else ids


def lost_runs(kept: Sequence[int], whole: Sequence[int]) -> dict[int, list[int]]:
    """Tokens of `whole` that are not in `kept`, by the place in `kept` before which they stood."""
    if kept == whole:
        return {}
    matcher = difflib.SequenceMatcher(None, kept, whole, autojunk=len(whole) > _MANY)
    lost: dict[int, list[int]] = {}
    for kind, start, _, low, high in matcher.get_opcodes():
        if kind in {"insert", "replace"}:
            lost.setdefault(start, []).extend(whole[low:high])
    return lost


_MANY = 4000


def _segments(
    tokenizer: Any, ids: Sequence[int], weights: Sequence[float], lost: Mapping[int, Sequence[int]]
) -> Iterator[Segment]:
    """Cut the text where the weight changes or tokens are lost; the others' texts join to the whole text."""
    before = ""
    runs = itertools.groupby(range(len(ids)), key=lambda at: (weights[at], sum(place <= at for place in lost)))
    for (weight, _), run in runs:
        places = list(run)
        start, end = places[0], places[-1] + 1
        if start in lost:
            yield Segment(_decode(tokenizer, lost[start]), 0.0, truncated=True)
        text = _decode(tokenizer, ids[:end])
        part = text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[start:end])
        yield Segment(part, weight)
        before = text
    if len(ids) in lost:
        yield Segment(_decode(tokenizer, lost[len(ids)]), 0.0, truncated=True)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def to_json(shown: Shown) -> str:
    """One line of JSON; the keys of preferences begin with chosen_ and rejected_.

    Segments may have a `weight` other than 0 and 1, and `truncated`: then their text is not part of `text`.
    """
    facts: dict[str, object] = {"index": shown.index, "source": shown.source, "truncated": shown.truncated}
    for side in shown.sides:
        prefix = f"{side.name}_" if side.name else ""
        facts[f"{prefix}text"] = side.text
        facts[f"{prefix}input_ids"] = side.input_ids
        facts[f"{prefix}labels"] = side.labels
        facts[f"{prefix}segments"] = [_segment_json(segment) for segment in side.segments]
    return json.dumps(facts, ensure_ascii=False)


def _segment_json(segment: Segment) -> dict[str, object]:
    facts: dict[str, object] = {"text": segment.text, "supervised": segment.supervised}
    if segment.truncated:
        facts["truncated"] = True
    return facts if segment.weight in {0.0, 1.0} else {**facts, "weight": segment.weight}


def to_text(shown: Shown, *, colour: bool) -> str:
    """Lines for a terminal: learnt text green, weighted text yellow, truncated text red and struck through.

    Without colour, learnt text in double brackets and truncated text in `{--` and `--}`.
    """
    lines = []
    for side in shown.sides:
        lines.append(_headline(shown, side))
        lines.append("".join(_paint(segment, colour) for segment in side.segments))
    return "\n".join(lines) + "\n"


def _paint(segment: Segment, colour: bool) -> str:
    text = _printable(segment.text)
    if segment.truncated:
        more = len(text) - _MAX_CUT_SHOWN
        text = text if more <= 0 else f"{text[:_MAX_CUT_SHOWN]}… {more} more characters"
        return f"{_RED}{text}{_RESET}" if colour else "{--" + text + "--}"
    mark = "" if segment.weight in {0.0, 1.0} else f"(x{segment.weight:g})"
    if not colour:
        return f"[[{mark}{text}]]" if segment.supervised else text
    paint = (_YELLOW if mark else _GREEN) if segment.supervised else _DIM
    return f"{paint}{mark}{text}{_RESET}"


def _printable(text: str) -> str:
    """Text without control characters, which must not reach the terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() else repr(char)[1:-1] for char in text)


def _headline(shown: Shown, side: Side) -> str:
    learnt = sum(label != IGNORE_INDEX for label in side.labels)
    name = f" {side.name}" if side.name else ""
    cut = ", truncated" if shown.truncated else ""
    return f"--- {shown.index}{name}: {shown.source}, {len(side.input_ids)} tokens, {learnt} supervised{cut}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data preview</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em;
  color: #222; background: #fff; }}
h2 {{ font-size: 1em; margin: 2em 0 .5em; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 1em; border-radius: 6px; }}
.masked {{ color: #666; }} .learnt {{ background: #c9efcf; }} .weighted {{ background: #ffe9a8; }}
.truncated {{ color: #a40000; text-decoration: line-through; background: #fbe3e3; }} sup {{ font-size: .7em; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818; }} pre {{ background: #222; }}
  .masked {{ color: #999; }} .learnt {{ background: #1d4d28; }} .weighted {{ background: #5c4a10; }}
  .truncated {{ color: #ff9c9c; background: #4a1c1c; }} }}
</style></head><body>
<h1>Data preview</h1>
<p><span class="learnt">learnt</span> <span class="weighted">learnt with another weight</span>
<span class="masked">not learnt</span> <span class="truncated">cut off, not part of the example</span></p>
{body}
</body></html>"""


def to_html(examples: Sequence[Shown]) -> str:
    """One page that needs no other file; the data's own markup is shown, never run."""
    parts = []
    for shown in examples:
        for side in shown.sides:
            body = "".join(_span(segment) for segment in side.segments)
            parts.append(f"<h2>{html.escape(_headline(shown, side).lstrip('- '))}</h2>\n<pre>{body}</pre>")
    return _PAGE.format(body="\n".join(parts))


def _span(segment: Segment) -> str:
    weighted = segment.supervised and segment.weight != 1
    kind = "weighted" if weighted else "learnt" if segment.supervised else "masked"
    kind = "truncated" if segment.truncated else kind
    weight = f"<sup>\u00d7{segment.weight:g}</sup>" if weighted else ""
    return f'<span class="{kind}">{weight}{html.escape(segment.text)}</span>'
