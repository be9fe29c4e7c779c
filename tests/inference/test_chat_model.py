"""The synchronous face of an engine."""

from __future__ import annotations

import time

import pytest
from tests.inference.engines_for_tests import EchoEngine

from llamafactory.errors import ConfigError, DataError, ModelError
from llamafactory.inference.chat_model import ChatModel, Reply, to_conversation
from llamafactory.inference.engine import GenerationOptions
from llamafactory.rendering.records import Message


def wait_until_idle(engine: EchoEngine) -> None:
    deadline = time.monotonic() + 5
    while engine.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_chat_and_stream_give_the_same_text() -> None:
    with ChatModel.from_engine(EchoEngine()) as model:
        messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hello"}]
        assert model.chat(messages) == Reply("[Be kind] 1: hello", "stop", 1, 4)
        assert "".join(model.stream_chat(messages)) == "[Be kind] 1: hello"


def test_closing_a_stream_stops_the_answer() -> None:
    engine = EchoEngine()
    with ChatModel.from_engine(engine) as model:
        stream = model.stream_chat([Message("user", "slow")])
        assert next(stream) == "word "
        assert engine.running == 1
        stream.close()
        wait_until_idle(engine)
        assert model.chat([Message("user", "hi")]).text == "[] 1: hi"


def test_an_engine_error_reaches_the_caller() -> None:
    with ChatModel.from_engine(EchoEngine()) as model, pytest.raises(ModelError, match="does not fit"):
        model.chat([{"role": "user", "content": "fail"}])


def test_close_closes_the_engine_once() -> None:
    engine = EchoEngine()
    model = ChatModel.from_engine(engine)
    model.close()
    model.close()
    assert engine.closed


def test_an_unknown_option_is_named() -> None:
    with (
        ChatModel.from_engine(EchoEngine()) as model,
        pytest.raises(ConfigError, match=r"temprature: not an option .* did you mean 'temperature'"),
    ):
        model.chat([{"role": "user", "content": "hi"}], temprature=1.0)


def test_options_of_a_call_do_not_stay() -> None:
    with ChatModel.from_engine(EchoEngine(), GenerationOptions(top_p=0.5)) as model:
        model.chat([{"role": "user", "content": "hi"}], top_p=0.9)
        assert model.options.top_p == 0.5


def test_tool_messages_and_tools_become_a_conversation() -> None:
    found = to_conversation(
        [
            {"role": "user", "content": "weather?"},
            {"role": "function", "content": "{}"},
            {"role": "tool", "content": "sunny"},
        ],
        tools=[{"name": "get_weather"}],
    )
    assert [message.role for message in found.messages] == ["user", "function", "observation"]
    assert found.tools == '[{"name": "get_weather"}]'


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "must come from the user"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must come from the user"),
        ([{"role": "usr", "content": "a"}], "number 1 has the role 'usr'.*did you mean 'user'"),
        ([{"role": "user"}], "number 1 .* content"),
    ],
)
def test_malformed_messages_are_data_errors(messages: list[dict[str, str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_conversation(messages)


@pytest.mark.parametrize(
    ("options", "greedy", "room"),
    [
        (GenerationOptions(), False, 1024),
        (GenerationOptions(do_sample=False), True, 1024),
        (GenerationOptions(temperature=0), True, 1024),
        (GenerationOptions(max_new_tokens=0, max_length=30), False, 20),
        (GenerationOptions(max_new_tokens=5, max_length=2), False, 5),
    ],
)
def test_options_decide_greedy_and_room(options: GenerationOptions, greedy: bool, room: int) -> None:
    assert options.is_greedy is greedy
    assert options.new_tokens(10) == room
