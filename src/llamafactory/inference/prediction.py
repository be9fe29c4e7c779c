"""Answers to a whole data set: many questions at once to one engine, each answer handed over as soon as it is there.

Knows the engine's protocol and nothing of files, metrics or models.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from llamafactory.data.questions import Question
from llamafactory.errors import DataError, LlamaFactoryError, ModelError
from llamafactory.inference.engine import Engine, GenerationOptions
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.tokens import IGNORE_INDEX, join

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Task:
    """One question, ready to be asked.

    index: place in the whole data. prompt: the text the model sees, control tokens spelled out. num_tokens: of the
    prompt. label: the text training would teach, without stop token.
    """

    index: int
    dataset: str
    conversation: Conversation
    prompt: str
    num_tokens: int
    label: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to task `index`. end: stop, length (no room left), or failed (the prompt does not fit)."""

    index: int
    text: str
    end: str


def make_tasks(questions: Sequence[Question], renderer: Renderer, decode: Decode) -> list[Task]:
    """Render every question with the training renderer. Raises DataError naming a row that cannot be written."""
    turns = renderer.encode([question.prompt for question in questions])
    tasks = []
    for index, (question, (turn,)) in enumerate(zip(questions, turns, strict=True)):
        conversation = question.prompt.conversation
        prompt = renderer.text(conversation, generation=True)
        learnt = join(turn.target).labels if question.prompt.reference else []
        answer = _until_stop([label for label in learnt if label != IGNORE_INDEX], renderer.stop_ids)
        num_tokens = len(join(turn.source).input_ids)
        tasks.append(Task(index, question.dataset, conversation, prompt, num_tokens, decode(answer)))
    return tasks


def _until_stop(ids: Sequence[int], stop_ids: Iterable[int]) -> Sequence[int]:
    stops = frozenset(stop_ids)
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


def digest(tasks: Iterable[Task]) -> str:
    """Changes whenever a prompt, a label or their order does."""
    found = hashlib.sha256()
    for task in tasks:
        found.update(f"{task.index}\0{task.prompt}\0{task.label}\0".encode())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked.

    width: most questions at a time. seed: the seed of the first question; that of another one is so many higher, so an
    answer is the same whatever is asked beside it. skips_failed: an unanswerable prompt is noted instead of raised.
    """

    options: GenerationOptions
    width: int
    seed: int
    skips_failed: bool = False


def answer_all(engine: Engine, tasks: Sequence[Task], asking: Asking, on_answer: Callable[[Answer], None]) -> None:
    """Ask every task, then close the engine; `on_answer` is called in this thread as answers are finished.

    Raises the first error: ModelError naming the row of a prompt that does not fit.
    """

    async def run() -> None:
        try:
            await _answer_all(engine, tasks, asking, on_answer)
        finally:
            await engine.close()

    asyncio.run(run())


async def _answer_all(
    engine: Engine, tasks: Sequence[Task], asking: Asking, on_answer: Callable[[Answer], None]
) -> None:
    waiting = iter(tasks)

    async def work(shared: Iterator[Task]) -> None:
        for task in shared:
            on_answer(await _answer(engine, task, asking))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(asking.width, len(tasks))):
                group.create_task(work(waiting))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


async def _answer(engine: Engine, task: Task, asking: Asking) -> Answer:
    options = asking.options
    if not options.is_greedy:
        options = replace(options, seed=asking.seed + task.index)
    text, end = "", "length"
    try:
        async with aclosing(engine.generate(task.conversation, options)) as deltas:
            async for delta in deltas:
                text += delta.text
                end = delta.finish_reason or end
    except (ModelError, DataError) as error:
        if not asking.skips_failed:
            raise ModelError(f"{task.conversation.source}: {error}") from error
        return Answer(task.index, "", "failed")
    return Answer(task.index, text, end)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: one the user can cure before any other."""
    flat: list[BaseException] = []
    for error in errors.exceptions:
        flat.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in flat if isinstance(error, LlamaFactoryError)), flat[0])
