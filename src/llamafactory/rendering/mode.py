"""How one conversation is to be written: what is learnt, and its messages grouped into prompts and answers.

Knows records only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llamafactory.errors import DataError
from llamafactory.rendering.records import TRAINED_ROLES, Conversation, Message


@dataclass(frozen=True, slots=True)
class Mode:
    """How one conversation is written.

    train_on_prompt: prompts are learnt too. mask_history: only the last answer is. single_turn: the record is one
    prompt with one answer, however many messages the prompt has. generation: the conversation ends with an open answer.
    """

    train_on_prompt: bool = False
    mask_history: bool = False
    single_turn: bool = False
    generation: bool = False

    @property
    def prompt_weight(self) -> float:
        """Loss weight of template text around prompts."""
        return 1.0 if self.train_on_prompt and not self.single_turn else 0.0

    def weight(self, message: Message, *, last: bool) -> float:
        """Loss weight of a message's text. `last` is for answers: the final one of the conversation."""
        if self.single_turn:
            return 1.0 if last else 0.0
        if message.loss is not None:
            return message.loss
        if message.role not in TRAINED_ROLES:
            return self.prompt_weight
        return 1.0 if last or not self.mask_history else 0.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user message or the results of tool calls, and the answer; `answer` is None where it is still to be made."""

    number: int
    prompts: tuple[Message, ...]
    answer: Message | None
    last: bool


def exchanges(conversation: Conversation, *, open_end: bool) -> Iterator[Exchange]:
    """Group messages. open_end: the last answer is missing.

    Raises DataError when prompts and answers do not take turns; several tool results in a row are one prompt.
    """
    if not conversation.messages:
        raise DataError(
            f"{place_of(conversation)}: the conversation has no messages; at least a user message is needed"
        )
    prompts: list[Message] = []
    number, count = 0, len(conversation.messages)
    for index, message in enumerate(conversation.messages):
        if message.role in TRAINED_ROLES:
            if not prompts:
                raise _out_of_order(conversation, index, "it must follow a user message or a tool result")
            yield Exchange(number, tuple(prompts), message, last=index == count - 1)
            prompts, number = [], number + 1
        elif prompts and not message.role == prompts[-1].role == "observation":
            raise _out_of_order(conversation, index, "an assistant message must stand between two prompts")
        else:
            prompts.append(message)
    if open_end and not prompts:
        raise _out_of_order(conversation, count - 1, "a prompt must end with a user message or a tool result")
    if prompts and not open_end:
        raise _out_of_order(conversation, count - 1, "an example must end with an assistant message")
    if prompts:
        yield Exchange(number, tuple(prompts), None, last=True)


def latest_of(conversation: Conversation, count: int) -> Conversation:
    """The last `count` exchanges of a conversation that ends with an answer, under its system prompt and tools."""
    kept = list(exchanges(conversation, open_end=False))[-count:]
    size = sum(len(exchange.prompts) + 1 for exchange in kept)
    return replace(conversation, messages=conversation.messages[-size:])


def place_of(conversation: Conversation) -> str:
    """Where a conversation comes from, for messages."""
    return conversation.source or "conversation"


def _out_of_order(conversation: Conversation, index: int, reason: str) -> DataError:
    return DataError(
        f"{place_of(conversation)}: message {index + 1} of {len(conversation.messages)} has role "
        f"{conversation.messages[index].role!r}, but {reason}; reorder or remove the message"
    )
