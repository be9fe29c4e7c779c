"""Conversations as chat templates take them: a list of messages, whose texts may be replaced by marks.

Thoughts go into the field a template reads them from, or stay in the text of the answer. Knows no template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamafactory.rendering.answer_spans import mark
from llamafactory.rendering.calls import ToolCall, read_function_message
from llamafactory.rendering.records import TRAINED_ROLES, Conversation, Message
from llamafactory.rendering.thinking import Answer, split_thought

STYLES = ("thoughts", "texts", "literal")
"""How texts are marked: thoughts apart from answers, each message's text as one, or not at all."""

THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Fields that vendors' chat templates read thoughts from."""

THINK = ("<think>", "</think>")

Put = Callable[..., str]
"""`put(text, needed=True)` is what stands for a text of the message: a mark, or the text."""


@dataclass(frozen=True, slots=True)
class ChatText:
    """A text that a mark stands for, and the number of its message (-1: the system prompt).

    needed: the template must write it; thoughts may be left out.
    """

    text: str
    owner: int
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as the template is given it. texts: what the marks stand for, by their numbers."""

    messages: list[dict[str, object]]
    texts: list[ChatText]


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How a template wants its messages.

    answer_field, call_field: the field it reads thoughts from, in answers and in messages with calls; empty where
    thoughts stay in the text. arguments_as_text: it takes the arguments of a call as JSON text only.
    """

    answer_field: str = ""
    call_field: str = ""
    arguments_as_text: bool = False

    def chat(self, conversation: Conversation, style: str, *, default_system: str = "") -> Chat:
        """The messages, texts replaced by marks unless `style` is `literal`."""
        texts: list[ChatText] = []

        def writer(owner: int) -> Put:
            def put(text: str, needed: bool = True) -> str:
                if style == "literal" or not text:
                    return text
                texts.append(ChatText(text, owner, needed))
                return mark(len(texts) - 1)

            return put

        messages: list[dict[str, object]] = []
        system = conversation.system or default_system
        if system:
            messages.append({"role": "system", "content": writer(-1)(system)})
        for index, message in enumerate(conversation.messages):
            put = writer(index)
            if message.role == "function":
                messages.append(self._calls(message, conversation.source, put))
            elif message.role == "assistant":
                messages.append(self._answer(message, put, style))
            else:
                role = "tool" if message.role == "observation" else message.role
                messages.append({"role": role, "content": put(message.content)})
        return Chat(messages, texts)

    def shape(self, conversation: Conversation, style: str) -> tuple[object, ...]:
        """What the marked messages depend on, texts aside."""
        messages: list[object] = []
        for message in conversation.messages:
            if message.role == "function" or style == "literal":
                messages.append((message.role, message.content))
                continue
            parts = split_thought(message.content, THINK)
            apart = bool(parts.lead) and message.role == "assistant" and (style == "thoughts" or self.answer_field)
            own = (bool(inner_thought(parts)), bool(parts.bare)) if apart else bool(message.content)
            messages.append((message.role, own))
        literal_system = conversation.system if style == "literal" else ""
        return (style, literal_system, conversation.tools, tuple(messages))

    def keeps_thoughts_in_text(self, conversation: Conversation) -> bool:
        """True when an answer has a thought for which there is no field."""
        fields = {"assistant": self.answer_field, "function": self.call_field}
        return any(
            message.role in TRAINED_ROLES
            and not fields[message.role]
            and bool(split_thought(message.content, THINK).lead)
            for message in conversation.messages
        )

    def _answer(self, message: Message, put: Put, style: str) -> dict[str, object]:
        parts = split_thought(message.content, THINK)
        if not parts.lead or (style != "thoughts" and not self.answer_field):
            return {"role": "assistant", "content": put(message.content)}
        thought = put(inner_thought(parts), needed=False)
        content = put(parts.bare)
        if self.answer_field:
            return {"role": "assistant", "content": content, **({self.answer_field: thought} if thought else {})}
        return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{content}"}

    def _calls(self, message: Message, source: str, put: Put) -> dict[str, object]:
        """A message with calls; `put` marks its texts and the names of its calls."""
        parts, before, calls = read_calls(message, source)
        written: dict[str, object] = {"role": "assistant"}
        content = ""
        if self.call_field and inner_thought(parts):
            written[self.call_field] = put(inner_thought(parts), needed=False)
        elif parts.lead and not self.call_field:
            content = "".join(parts.lead).strip() + "\n\n"
        written["content"] = content + put(before)
        written["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": put(call.name),
                    "arguments": call.arguments_json if self.arguments_as_text else dict(call.arguments),
                },
            }
            for call in calls
        ]
        return written

    def unmarked(self, conversation: Conversation, style: str) -> list[str]:
        """Texts that stand in the messages as they are, unmarked."""
        found = [conversation.tools]
        for message in conversation.messages:
            if message.role == "function":
                parts, _, calls = read_calls(message, conversation.source)
                found += [call.arguments_json for call in calls]
                found += [] if self.call_field else [inner_thought(parts)]
            if style == "literal":
                found.append(message.content)
        return found


def inner_thought(parts: Answer) -> str:
    """The text of a thought without its words."""
    return "".join(parts.lead).strip().removeprefix(THINK[0]).removesuffix(THINK[1]).strip("\n")


def read_calls(message: Message, source: str) -> tuple[Answer, str, list[ToolCall]]:
    """Thought, text and calls of a function message. Raises DataError naming the row when they cannot be read."""
    parts = split_thought(message.content, THINK)
    before, calls = read_function_message(parts.bare.strip(), ("<tool_call>", "</tool_call>"), source)
    return parts, before, calls
