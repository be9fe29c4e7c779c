"""Many questions at once: how many, in which order, with which seed, and what an error does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from tests.inference.engines_for_tests import EchoEngine

from llamafactory.errors import ModelError
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.prediction import Answer, Asking, Task, answer_all
from llamafactory.rendering.records import Conversation, Message

GREEDY, SAMPLED = GenerationOptions(do_sample=False), GenerationOptions()


class WatchedEngine(EchoEngine):
    """Keeps the seeds and how many questions ran at a time; later questions are answered sooner."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: dict[str, int | None] = {}
        self.most = 0

    async def generate(self, conversation: Conversation, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        last = conversation.messages[-1].content
        self.seeds[last] = options.seed
        async for delta in super().generate(conversation, options):
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.02 / (1 + int(last) % 3) if last.isdecimal() else 0)
            yield delta


def tasks_of(texts: Sequence[str]) -> list[Task]:
    talks = [Conversation((Message("user", text),), source=f"data.json:{row}") for row, text in enumerate(texts, 1)]
    return [Task(index, "data", talk, "prompt", 1, "label") for index, talk in enumerate(talks)]


def asked(engine: EchoEngine, texts: Sequence[str], **options: object) -> list[Answer]:
    found: list[Answer] = []
    asking = Asking(**{"options": GREEDY, "width": 4, "seed": 7, **options})  # type: ignore[arg-type]
    answer_all(engine, tasks_of(texts), asking, found.append)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("width", [1, 3, 50])
def test_at_most_so_many_at_a_time_and_every_answer_once(width: int) -> None:
    engine = WatchedEngine()
    found = asked(engine, [str(number) for number in range(10)], width=width)
    assert {answer.index: answer.text for answer in found} == {n: f"[] 1: {n}" for n in range(10)}
    assert engine.most == min(width, 10) and engine.closed and {answer.end for answer in found} == {"stop"}
    if width == 3:
        assert [answer.index for answer in found] != sorted(answer.index for answer in found)


def test_each_question_has_its_own_seed_whatever_is_asked_beside_it() -> None:
    engine = WatchedEngine()
    asked(engine, ["0", "1", "2"], options=SAMPLED)
    assert engine.seeds == {"0": 7, "1": 8, "2": 9}
    asked(engine, ["0"], options=GREEDY)
    assert engine.seeds["0"] is None


def test_an_error_names_the_row_and_stops_everything() -> None:
    engine = WatchedEngine()
    with pytest.raises(ModelError, match=r"^data\.json:3: The prompt does not fit"):
        asked(engine, ["slow", "slow", "fail"])
    assert engine.closed and engine.running == 0


def test_an_unanswerable_question_can_be_skipped() -> None:
    found = asked(WatchedEngine(), ["fail", "1"], skips_failed=True)
    assert sorted(found, key=lambda answer: answer.index) == [Answer(0, "", "failed"), Answer(1, "[] 1: 1", "stop")]


def test_nothing_to_ask_is_no_error() -> None:
    assert asked(WatchedEngine(), []) == []
