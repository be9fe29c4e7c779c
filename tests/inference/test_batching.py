"""Answers made together are those made alone, whoever comes, leaves, fails or is cancelled beside them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch
from tests.inference.engines_on_tiny_models import (
    GREEDY,
    TOKENIZER,
    build,
    collect,
    concurrent,
    never_stopping,
    sequential,
    stirred_model,
    text_of,
    varied,
)
from transformers import PreTrainedModel

from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference import batching, row_cache
from llamafactory.inference.engine import EngineFailure, GenerationOptions

SAMPLED = GenerationOptions(temperature=1.3, top_p=0.95, top_k=0, max_new_tokens=12, skip_special_tokens=False)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return stirred_model()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith(("decode", "gen"))]
    assert left == []


def test_greedy_answers_are_the_same_together_and_alone(model: PreTrainedModel) -> None:
    asked = varied(9)
    alone = sequential(model, asked)
    together = concurrent(model, asked)
    assert [text_of(deltas) for deltas in together] == [text_of(deltas) for deltas in alone]
    assert [deltas[-1] for deltas in together] == [deltas[-1] for deltas in alone]
    assert len({text_of(deltas) for deltas in alone}) == 9


def test_greedy_answers_are_those_of_the_models_own_generate(model: PreTrainedModel) -> None:
    asked = varied(4)
    for (prompt, options), deltas in zip(asked, concurrent(model, asked), strict=True):
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        settings = {"max_new_tokens": options.max_new_tokens, "do_sample": False, "pad_token_id": 0}
        stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
        found = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=stop, **settings)
        assert text_of(deltas) == TOKENIZER.decode(found[0, ids.shape[1] :])


def test_a_seeded_answer_does_not_depend_on_what_else_is_made(model: PreTrainedModel) -> None:
    asked = [(f"Question {seed}", replace(SAMPLED, seed=seed, temperature=1 + seed / 10)) for seed in range(6)]
    alone = [text_of(deltas) for deltas in sequential(model, asked)]
    mixed = [text_of(deltas) for deltas in concurrent(model, [*varied(3), *asked, *varied(2, SAMPLED)])]
    assert mixed[3:9] == alone
    again = [text_of(deltas) for deltas in concurrent(model, [(asked[0][0], replace(SAMPLED, seed=9)), asked[0]])]
    assert again[1] == alone[0] != again[0]


def test_options_of_one_answer_do_not_touch_its_neighbours(model: PreTrainedModel) -> None:
    plain = varied(3)
    odd = [
        ("Name", replace(GREEDY, repetition_penalty=5.0)),
        ("Name", replace(GREEDY, frequency_penalty=2.0, presence_penalty=1.0)),
        ("Name", replace(GREEDY, top_logprobs=2)),
    ]
    expected = sequential(model, [*plain, *odd])
    found = concurrent(model, [*odd, *plain], rows=6)
    assert [text_of(deltas) for deltas in found] == [text_of(deltas) for deltas in expected[3:] + expected[:3]]


def test_a_long_prompt_is_read_in_pieces(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PROMPT_TOKENS", 7)
    asked = [*varied(3), ("Name three colours. " * 15, GREEDY)]
    assert [text_of(deltas) for deltas in concurrent(model, asked)] == [
        text_of(deltas) for deltas in sequential(model, asked)
    ]


def test_log_probabilities_come_with_the_text_they_made(model: PreTrainedModel) -> None:
    (deltas,) = sequential(model, [("Name three colours.", replace(GREEDY, top_logprobs=3))])
    tokens = [token for delta in deltas for token in delta.logprobs]
    assert [token.token_id for token in tokens] == [
        token for token in _ids(model, "Name three colours.") if token != TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    ]
    for token in tokens:
        assert token.top[0] == (token.text, token.logprob)
        assert [value for _, value in token.top] == sorted((value for _, value in token.top), reverse=True)
    ids = TOKENIZER("Name three colours.", return_tensors="pt")["input_ids"]
    first = model(ids).logits[0, -1].detach().log_softmax(-1).max()
    assert tokens[0].logprob == pytest.approx(float(first), abs=1e-4)


def _ids(model: PreTrainedModel, prompt: str) -> list[int]:
    ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
    stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    found = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0)
    return found[0, ids.shape[1] :].tolist()


def test_an_answer_follows_its_schema_beside_free_ones(model: PreTrainedModel) -> None:
    pytest.importorskip("llguidance")
    closed = json.dumps(
        {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}
    )
    asked = [("Name", replace(GREEDY, json_schema=closed, max_new_tokens=30)), *varied(3)]
    found = concurrent(model, asked)
    assert json.loads(text_of(found[0])) in ({"a": 1}, {"a": 22})
    assert found[0][-1].finish_reason == "stop"
    assert [text_of(deltas) for deltas in found[1:]] == [text_of(deltas) for deltas in sequential(model, asked[1:])]


def test_an_error_in_one_answer_leaves_the_others_alone(model: PreTrainedModel) -> None:
    asked = varied(3)
    expected = [text_of(deltas) for deltas in sequential(model, asked)]

    async def run() -> list[object]:
        engine = build(model)
        bad = [
            collect(engine, "word " * 600, GREEDY),
            collect(engine, "Name", replace(GREEDY, json_schema="{")),
            collect(engine, "", GREEDY),
        ]
        found = await asyncio.gather(*bad, *(collect(engine, *one) for one in asked), return_exceptions=True)
        await engine.close()
        return list(found)

    found = asyncio.run(run())
    assert [type(error) for error in found[:3]] == [ModelError, ConfigError, ModelError]
    assert [text_of(deltas) for deltas in found[3:]] == expected


def test_a_row_without_numbers_fails_alone(model: PreTrainedModel) -> None:
    """A token whose embedding is NaN poisons the rows that hold it and no others."""
    poisoned = stirred_model()
    word = TOKENIZER.encode("&", add_special_tokens=False)[0]
    poisoned.get_input_embeddings().weight.data[word] = float("nan")
    asked = varied(2)

    async def run() -> list[object]:
        engine = build(poisoned)
        found = await asyncio.gather(
            collect(engine, "a & b", GREEDY), *(collect(engine, *one) for one in asked), return_exceptions=True
        )
        await engine.close()
        return list(found)

    found = asyncio.run(run())
    assert isinstance(found[0], ModelError)
    assert "hold no usable number" in str(found[0])
    assert [text_of(deltas) for deltas in found[1:]] == [text_of(deltas) for deltas in sequential(model, asked)]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_memory_that_ends_while_rows_grow_costs_one_answer(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever tensor found no room, answers that come later get theirs."""
    real, calls = row_cache._enlarged, 0

    def enlarged(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise torch.OutOfMemoryError("no room")
        return real(*args)  # type: ignore[arg-type]

    async def run() -> tuple[str, str]:
        engine = build(never_stopping(stirred_model(2048)))
        monkeypatch.setattr(row_cache, "_enlarged", enlarged)
        async with aclosing(engine.generate("Hi", replace(GREEDY, max_new_tokens=2000))) as running:
            await anext(running)  # keeps its row, so that the cache is not given up meanwhile
            found = []
            for _ in range(2):
                try:
                    long = engine.generate("word " * 300, replace(GREEDY, max_new_tokens=3))
                    found.append("".join([delta.text async for delta in long]) and "answered")
                except ModelError as error:
                    found.append(str(error))
            assert (await anext(running)).finish_reason is None
        await engine.close()
        return found[0], found[1]

    first, second = asyncio.run(run())
    assert "not enough memory" in first and second == "answered"


def test_leaving_frees_the_place_at_once() -> None:
    model = never_stopping(stirred_model())
    endless = replace(GREEDY, max_new_tokens=490)

    async def run() -> list[str]:
        engine = build(model, rows=2)
        async with (
            aclosing(engine.generate("Name", endless)) as first,
            aclosing(engine.generate("Name", endless)) as second,
        ):
            await anext(first)
            await anext(second)
            await first.aclose()
            found = [text_of(await collect(engine, *one)) for one in varied(2)]
            await anext(second)
        await engine.close()
        return found

    assert asyncio.run(run()) == [text_of(deltas) for deltas in sequential(model, varied(2))]


def test_those_who_wait_may_leave_too_and_the_first_is_served_first(model: PreTrainedModel) -> None:
    async def run() -> list[int]:
        engine, order = build(model, rows=1), []

        async def one(number: int) -> None:
            await collect(engine, "Name", replace(GREEDY, max_new_tokens=3))
            order.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()
        return order

    assert asyncio.run(run()) == [0, 1, 3, 4]


def test_random_comers_and_goers(model: PreTrainedModel) -> None:
    """15 requests on 3 rows, a third of them abandoned after a few pieces: the others get what they get alone."""
    asked = varied(15)

    async def run() -> list[str]:
        engine = build(model, rows=3)

        async def one(number: int) -> str:
            prompt, options = asked[number]
            if number % 3:
                return text_of(await collect(engine, prompt, options))
            async with aclosing(engine.generate(prompt, replace(options, max_new_tokens=300))) as deltas:
                for _ in range(number % 4):
                    await anext(deltas)
            return ""

        found = await asyncio.gather(*(one(number) for number in range(len(asked))))
        await engine.close()
        return found

    kept = [number for number in range(15) if number % 3]
    expected = [text_of(deltas) for deltas in sequential(model, [asked[number] for number in kept])]
    found = asyncio.run(run())
    assert [found[number] for number in kept] == expected


def test_closing_ends_running_and_waiting_answers_and_later_ones() -> None:
    model = never_stopping(stirred_model())
    endless = replace(GREEDY, max_new_tokens=490)

    async def run() -> list[object]:
        engine = build(model, rows=1)
        tasks = [asyncio.create_task(collect(engine, "Name", endless)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await engine.close()
        return list(await asyncio.gather(*tasks, collect(engine, "Name", endless), return_exceptions=True))

    found = asyncio.run(run())
    assert {type(error) for error in found} == {EngineFailure}
    assert "engine was closed" in str(found[0])
    assert len({str(error) for error in found}) == 1


def test_the_event_loop_stays_free_while_answers_are_made() -> None:
    """Other coroutines get many turns during one answer."""

    async def run() -> int:
        engine, turns = build(never_stopping(stirred_model())), 0
        answer = asyncio.create_task(collect(engine, "Name", replace(GREEDY, max_new_tokens=40)))
        deadline = time.monotonic() + 60
        while not answer.done() and time.monotonic() < deadline:
            turns += 1
            await asyncio.sleep(0.001)
        await engine.close()
        return turns

    assert asyncio.run(run()) > 20
