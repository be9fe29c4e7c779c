"""Examples for people: which tokens are learnt, with which weight, what was cut. Text, one HTML page, or JSON lines.

Knows examples and a tokenizer that can write ids as text.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data.examples import Example
from llamafactory.rendering.tokens import IGNORE_INDEX

_GREEN, _YELLOW, _DIM, _RESET = "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one loss weight; 0 is not learnt."""

    text: str
    weight: float

    @property
    def supervised(self) -> bool:
        return self.weight > 0


@dataclass(frozen=True)
class Side:
    """One token sequence of an example. name: empty, or "chosen" or "rejected"."""

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


def show(example: Example, tokenizer: Any, *, index: int) -> Shown:
    """Decode an example and its learnt segments."""
    names = ("chosen", "rejected") if "chosen_input_ids" in example.columns else ("",)
    sides = []
    for name in names:
        prefix = f"{name}_" if name else ""
        ids, labels = example.columns[f"{prefix}input_ids"], example.columns[f"{prefix}labels"]
        weights = example.weights or [0.0 if label == IGNORE_INDEX else 1.0 for label in labels]
        if len(labels) != len(ids):  # a prompt and its reference answer
            ids, weights = ids + labels, [0.0] * len(ids) + [1.0] * len(labels)
        sides.append(Side(name, _decode(tokenizer, ids), ids, labels, _segments(tokenizer, ids, weights)))
    return Shown(index, example.source, sides, example.truncated)


def _segments(tokenizer: Any, ids: Sequence[int], weights: Sequence[float]) -> list[Segment]:
    """Cut the text where the weight changes; the segments' texts join to the whole text."""
    segments = []
    start, before = 0, ""
    for weight, run in itertools.groupby(weights):
        end = start + len(list(run))
        text = _decode(tokenizer, ids[:end])
        part = text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[start:end])
        segments.append(Segment(part, weight))
        start, before = end, text
    return segments


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def to_json(shown: Shown) -> str:
    """One line of JSON; the keys of preferences begin with chosen_ and rejected_."""
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
    return facts if segment.weight in {0.0, 1.0} else {**facts, "weight": segment.weight}


def to_text(shown: Shown, *, colour: bool) -> str:
    """Lines for a terminal: learnt text green, weighted text yellow; without colour, learnt text in double brackets."""
    lines = []
    for side in shown.sides:
        lines.append(_headline(shown, side))
        lines.append("".join(_paint(segment, colour) for segment in side.segments))
    return "\n".join(lines) + "\n"


def _paint(segment: Segment, colour: bool) -> str:
    # Control characters of the data must not reach the terminal.
    text = "".join(char if char in "\n\t" or char.isprintable() else repr(char)[1:-1] for char in segment.text)
    mark = "" if segment.weight in {0.0, 1.0} else f"(x{segment.weight:g})"
    if not colour:
        return f"[[{mark}{text}]]" if segment.supervised else text
    paint = (_YELLOW if mark else _GREEN) if segment.supervised else _DIM
    return f"{paint}{mark}{text}{_RESET}"


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
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818; }} pre {{ background: #222; }}
  .masked {{ color: #999; }} .learnt {{ background: #1d4d28; }} .weighted {{ background: #5c4a10; }} }}
</style></head><body>
<h1>Data preview</h1>
<p><span class="learnt">learnt</span> <span class="weighted">learnt with another weight</span>
<span class="masked">not learnt</span></p>
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
    title = f' title="weight {segment.weight:g}"' if weighted else ""
    return f'<span class="{kind}"{title}>{html.escape(segment.text)}</span>'
