"""A conversation: tools, results, thoughts, and the file it is saved as."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from tests.conftest import make_tokenizer
from tests.inference.calling_engine import CALL, CallingEngine

from llamafactory.config import load_config
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.data.rows import load_records
from llamafactory.errors import DataError
from llamafactory.inference.answer_text import AnswerText
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.sampling import Token
from llamafactory.inference.session import Session, new_session
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import build_renderer

TOOLS = '[{"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}]'
CONTENT = '<think>\nI need a sum.\n</think>\n\n[{"name": "add", "arguments": {"a": 1}}]'


@pytest.fixture(scope="module")
def model() -> Iterator[ChatModel]:
    with ChatModel.from_engine(CallingEngine()) as opened:
        yield opened


@pytest.fixture
def session(model: ChatModel) -> Session:
    return new_session(model)


def say(session: Session, text: str) -> tuple[str, str]:
    shown = list(session.split_answer(text))
    return "".join(s.text for s in shown if s.is_thought), "".join(s.text for s in shown if not s.is_thought)


def test_a_call_is_kept_as_a_call_and_the_next_message_is_its_result(session: Session) -> None:
    session.set_tools(TOOLS)
    thought, answer = say(session, "sum")
    assert thought == "I need a sum." and answer.startswith("<tool_call>")
    assert session.messages[-1] == Message("function", CONTENT)
    assert [(call.name, dict(call.arguments)) for call in session.calls()] == [("add", {"a": 1})]
    say(session, "3")
    assert session.messages[2] == Message("observation", "3") and session.messages[-1].role == "assistant"
    assert session.calls() == [] and session.model.engine.asked[-1].tools == TOOLS  # type: ignore[attr-defined]


class ThinkingEngine:
    """Says the tokens of one text; the words around its thought are control tokens."""

    def __init__(self, template: str, answer: str, controls: list[str]) -> None:
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": controls})
        self.renderer = build_renderer(tokenizer, TemplateConfig(template=template))
        self._texts = AnswerText(tokenizer, self.renderer)
        self._ids = tokenizer(answer, add_special_tokens=False)["input_ids"]

    async def generate(self, prompt: Conversation, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        async def tokens() -> AsyncGenerator[Token, None]:
            for number in (*self._ids, self.renderer.stop_ids[0]):
                yield Token(number)

        async for delta in self._texts.deltas(tokens(), 1, options):
            yield delta

    async def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("template", "answer", "controls"),
    [
        ("gemma4", "<|channel>thought\nhm<channel|>Yes.", ["<|channel>", "<channel|>"]),
        (
            "gpt_oss",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"],
        ),
    ],
)
def test_thoughts_between_control_tokens_are_told(template: str, answer: str, controls: list[str]) -> None:
    with ChatModel.from_engine(ThinkingEngine(template, answer, controls)) as model:  # type: ignore[arg-type]
        session = new_session(model)
        assert say(session, "hi") == ("hm", "Yes.")
        assert session.messages[-1] == Message("assistant", answer)
        prompt = model.engine.renderer.text(Conversation((*session.messages, Message("user", "so"))), generation=True)
        assert "assistantfinal" not in prompt and "thoughthm" not in prompt.replace("\n", "")


def test_without_tools_a_call_is_text(session: Session) -> None:
    say(session, "sum")
    assert session.messages[-1] == Message("assistant", CALL)


def test_what_is_saved_can_be_read_as_data(session: Session, tmp_path: Path) -> None:
    session.system = "S"
    session.set_tools(TOOLS)
    for text in ("sum", "3", "你好"):
        say(session, text)
    file = session.save(tmp_path / "talk")
    assert file == tmp_path / "talk.json" and [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    assert "你好" in file.read_text(encoding="utf-8")
    entry = {"file_name": str(file), "formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}}
    keys = {"model_name_or_path": "x", "dataset": "talk", "dataset_dir": {"talk": entry}}
    (record,) = load_records(load_config(keys, command="data"))
    assert isinstance(record, Conversation)
    assert list(record.messages) == session.messages
    assert (record.system, json.loads(record.tools)) == ("S", json.loads(TOOLS))
    with pytest.raises(DataError, match=r"exists already and is kept"):
        session.save(file)
    with pytest.raises(DataError, match=r"cannot be written \(No such file or directory\)"):
        session.save(tmp_path / "no" / "folder.json")


def test_clearing_keeps_system_and_tools(session: Session) -> None:
    session.system = "S"
    session.set_tools(TOOLS)
    say(session, "a")
    session.clear()
    assert (session.messages, session.system, session.tools) == ([], "S", TOOLS)


def test_an_interrupted_call_is_kept_as_text(session: Session) -> None:
    session.set_tools(TOOLS)
    pieces = session.answer("sum")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.messages[-1] == Message("assistant", said)
