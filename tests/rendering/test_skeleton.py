"""Which conversations are filled into a known shape, and which are written anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer

Build = Callable[..., Renderer]


def num_shapes(renderer: Renderer) -> int:
    assert renderer.skeletons is not None
    return len(renderer.skeletons._shapes)


def talk(answer: str = "fine", system: str = "", tools: str = "", loss: float | None = None) -> Conversation:
    return Conversation((Message("user", "hi"), Message("assistant", answer, loss=loss)), system=system, tools=tools)


def test_one_shape_is_written_once(render_with: Build) -> None:
    renderer = render_with("llama3")
    renderer.encode([talk(), talk("good"), talk("no <|eot_id|> is written by text")])
    assert num_shapes(renderer) == 1
    renderer.encode([talk(system="s"), talk(loss=0.5), talk(tools='[{"name": "f"}]')])
    assert num_shapes(renderer) == 4


@pytest.mark.parametrize("answer", ["", "<think>\na\n</think>\n\nb", "a </think> b"], ids=repr)
def test_texts_that_are_not_written_as_they_are_go_the_long_way(answer: str, render_with: Build) -> None:
    renderer = render_with("qwen3")
    renderer.encode([talk(answer)])
    assert num_shapes(renderer) == 0


def test_texts_that_hold_marks_stay_what_they_are(render_with: Build) -> None:
    renderer = render_with("llama3")
    text = "\ue0f00\ue0f1 and \ue0f02\ue0f1"
    assert text in renderer.text(talk(text, system=text))
    assert text in renderer.text(talk(text, tools=f'[{{"name": "f", "description": "{text}"}}]'))


def test_known_shapes_are_limited(render_with: Build) -> None:
    renderer = render_with("llama3")
    renderer.encode([talk(loss=number / 1000) for number in range(1, 300)])
    assert num_shapes(renderer) == 256
