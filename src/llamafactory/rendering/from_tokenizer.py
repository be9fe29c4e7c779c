"""The dialect of the tokenizer's own chat template: finds prompts and answers by rendering, not by guessing.

A conversation is rendered with marks in place of its texts, then with the texts; where both agree, every character is
known to be the template's or a message's. An answer begins where the template's generation prompt ends and stops behind
the first control token the template writes after it. Where that cannot be shown, the run ends with a clear error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamafactory.errors import ConfigError, DataError
from llamafactory.rendering.answer_spans import AnswerText, Bit, Plan, bits_of, make_plan, mark
from llamafactory.rendering.calls import read_tools, wrap
from llamafactory.rendering.chat_messages import STYLES, THINK, THOUGHT_FIELDS, Chat, ChatForm, ChatText
from llamafactory.rendering.encoder import TextEncoder
from llamafactory.rendering.layout import Layout
from llamafactory.rendering.markup import Markup
from llamafactory.rendering.mode import Mode, exchanges, place_of
from llamafactory.rendering.ollama import Frame, ollama_template
from llamafactory.rendering.records import TRAINED_ROLES, Conversation, Message
from llamafactory.rendering.sandbox import ChatTemplate, Refused, unusable

_MAX_PLANS = 512


class TokenizerDialect:
    """Writes conversations as the tokenizer's own chat template renders them.

    variables: what the template is told besides messages and tools, such as the begin and end token.
    """

    def __init__(
        self, template: ChatTemplate, encoder: TextEncoder, *, variables: Mapping[str, object], default_system: str
    ) -> None:
        self._template = template
        self._encoder = encoder
        self._variables = dict(variables)
        self._default_system = default_system
        self._plans: dict[tuple[object, ...], Plan | None] = {}
        self._form = self._find_form()
        probe = Conversation((Message("user", "a"), Message("assistant", "b")))
        turn = self._plan(probe, "texts", open_end=False)
        if turn is None:
            raise unusable("the prompt it writes for an answer does not begin the text it writes with that answer")
        stops = [self._encoder.split(bit)[-1] for bit in turn.turns[0].target[-1:] if isinstance(bit, str)]
        self.stop_ids = tuple(token for token in stops if isinstance(token, int))

    @property
    def reasoning_words(self) -> tuple[str, str] | None:
        """The words around a thought; None when the template never writes them."""
        return THINK if all(word in self._template.source for word in THINK) else None

    def write(self, layout: Layout, conversation: Conversation, mode: Mode) -> None:
        """Write a whole conversation; what a prompt repeats of an answer weighs as the prompt.

        Raises DataError when the template refuses the conversation or hides where its answers lie.
        """
        groups = list(exchanges(conversation, open_end=mode.generation))
        plan, texts = self._read(conversation, open_end=mode.generation)
        last_answer = groups[-1].answer
        weights = [self._weight(conversation, text.owner, mode, last_answer) for text in texts]
        asked = [
            mode.prompt_weight if _is_answer(conversation, text.owner) else weight
            for text, weight in zip(texts, weights, strict=True)
        ]
        for exchange, turn in zip(groups, plan.turns, strict=True):
            layout.source()
            self._write(layout, turn.source, (texts, asked), mode.prompt_weight)
            if exchange.answer is not None:
                layout.target()
                weight = mode.weight(exchange.answer, last=exchange.last)
                self._write(layout, turn.target, (texts, weights), weight)
                if not turn.stops:
                    layout.unstopped(weight)
        self._write(layout, plan.tail, (texts, asked), 0.0)
        layout.finish()

    def write_alternative(self, layout: Layout, conversation: Conversation, other: Message) -> None:
        """Write another last answer. Raises DataError when the template writes another prompt for it."""
        first, first_texts = self._read(conversation, open_end=False)
        changed = replace(conversation, messages=(*conversation.messages[:-1], other))
        plan, texts = self._read(changed, open_end=False)
        if _spell(plan.turns[-1].source, texts) != _spell(first.turns[-1].source, first_texts):
            raise DataError(
                f"{place_of(conversation)}: the tokenizer's chat template writes different prompts for "
                "the chosen and the rejected answer, so they cannot be compared; name a built-in template with "
                "`template: ...`"
            )
        layout.alternative()
        turn = plan.turns[-1]
        weights = [1.0] * len(texts)
        self._write(layout, turn.target, (texts, weights), 1.0)
        if not turn.stops:
            layout.unstopped(1.0)
        self._write(layout, plan.tail, (texts, weights), 0.0)
        layout.finish()

    def note(self, conversation: Conversation) -> str:
        """What a user should know about how the thoughts of a conversation are written, or nothing."""
        if THINK[1] in self._template.source or not self._form.keeps_thoughts_in_text(conversation):
            return ""
        return (
            "the tokenizer's own chat template knows no field for thoughts, so they are learnt as text of the answer, "
            "with the words <think> and </think>; name a template of a reasoning model with `template: ...` if they "
            "should be written in its way"
        )

    def to_jinja(self) -> str:
        """The tokenizer's own chat template."""
        return self._template.source

    def to_ollama(self, *, writes_bos: bool) -> str:
        """An Ollama template made from what the chat template writes around system, user and assistant messages."""
        return ollama_template(self._frame(), bos=str(self._variables.get("bos_token") or ""), writes_bos=writes_bos)

    def _frame(self) -> Frame:
        """The texts around messages, as a conversation of two exchanges shows them."""
        talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
        bare = self._plan(Conversation(talk), "texts", open_end=False)
        full = self._plan_or_none(Conversation(talk, system="s"), "texts")
        if bare is None:
            raise unusable("the texts around its messages cannot be told apart")
        first, second = bare.turns
        before_user, generation = _split_at_mark(second.source)
        answer_head, stop = _split_at_mark(first.target)
        after = _shared_prefix(before_user, "".join(map(str, bare.tail)))
        head = before_user[len(after) :]
        frame = Frame(
            prefix=_split_at_mark(first.source)[0].removesuffix(head),
            user=(head, ""),
            generation=generation,
            answer=(answer_head, stop + after),
        )
        if full is None:
            return frame
        before, behind = _split_at_mark(full.turns[0].source)
        between = _split_at_mark(bits_of(behind))[0]
        if between.endswith(head):
            return replace(frame, system=(before, between.removesuffix(head)), prefix_in_system=True)
        return replace(frame, system=("", between), merged=True)

    def _read(self, conversation: Conversation, *, open_end: bool) -> tuple[Plan, Sequence[ChatText]]:
        """The plan of a conversation and the texts its marks stand for, as the template writes them."""
        real = self._render(self._chat(conversation, "literal").messages, conversation, open_end=open_end)
        for style in STYLES:
            plan = self._plan(conversation, style, open_end=open_end)
            chat = self._chat(conversation, style)
            found = None if plan is None else _align(plan, chat.texts, real)
            if plan is not None and found is not None:
                self._check_literals(conversation, style)
                return plan, found
        raise DataError(
            f"{place_of(conversation)}: the tokenizer's chat template leaves out a part of this conversation, or "
            "changes earlier text as messages are added, so nothing shows which tokens are the answers'; "
            "name a built-in template with `template: ...`"
        )

    def _check_literals(self, conversation: Conversation, style: str) -> None:
        """Refuse control tokens in texts the template writes unmarked, where they would count as its own."""
        unmarked = self._form.unmarked(conversation, style)
        if any(map(self._encoder.holds_control, unmarked)):
            raise DataError(
                f"{place_of(conversation)}: tools, tool calls or reshaped messages spell a control token "
                "of the tokenizer, which its chat template cannot keep apart from its own; remove it from the row, or "
                "name a built-in template with `template: ...`"
            )

    def _weight(self, conversation: Conversation, owner: int, mode: Mode, last_answer: Message | None) -> float:
        if owner < 0:
            return mode.prompt_weight
        message = conversation.messages[owner]
        last = last_answer is not None and owner == len(conversation.messages) - 1
        return mode.weight(message, last=last)

    def _write(
        self,
        layout: Layout,
        bits: Sequence[Bit],
        filled: tuple[Sequence[ChatText], Sequence[float]],
        weight: float,
    ) -> None:
        texts, weights = filled
        for bit in bits:
            if isinstance(bit, str):
                layout.fragments([Markup(bit)], weight, control=True)
            else:
                layout.text(texts[bit].text, weights[bit], control=False)

    def _render(
        self, messages: Sequence[object], conversation: Conversation, *, open_end: bool, **variables: object
    ) -> str:
        tools = read_tools(conversation.tools, conversation.source)
        try:
            return self._template.render(
                {
                    **self._variables,
                    "messages": list(messages),
                    "tools": [dict(wrap(tool)) for tool in tools] or None,
                    "add_generation_prompt": open_end,
                    **variables,
                }
            )
        except Refused as refusal:
            raise DataError(
                f"{place_of(conversation)}: the tokenizer's chat template refuses this conversation "
                f"({refusal}); change the row, or name a built-in template with `template: ...`"
            ) from refusal

    def _chat(self, conversation: Conversation, style: str) -> Chat:
        return self._form.chat(conversation, style, default_system=self._default_system)

    def _find_form(self) -> ChatForm:
        """How the template wants its messages, told from renderings of small ones."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        asked, called = {"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}
        as_text = self._probe([asked, called]) is None
        if as_text:
            call["function"] = {"name": "f", "arguments": '{"a": 1}'}
        return ChatForm(
            answer_field=self._thought_field([asked, {"role": "assistant", "content": "b"}]),
            call_field=self._thought_field([asked, called]),
            arguments_as_text=as_text,
        )

    def _thought_field(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The field that the template reads the last answer's thought from, or nothing."""
        thought = mark(0)
        for field in THOUGHT_FIELDS:
            if field in self._template.source:
                probe = [*messages[:-1], {**messages[-1], field: thought}]
                if any(thought in (self._probe(probe, **told) or "") for told in ({}, {"enable_thinking": True})):
                    return field
        return ""

    def _probe(self, messages: Sequence[object], **variables: object) -> str | None:
        """The text of messages; empty when the template refuses them, None when it breaks over them."""
        try:
            return self._render(messages, Conversation(()), open_end=False, **variables)
        except ConfigError:
            return None
        except DataError:
            return ""

    def _plan_or_none(self, conversation: Conversation, style: str) -> Plan | None:
        try:
            return self._plan(conversation, style, open_end=False)
        except DataError:
            return None

    def _plan(self, conversation: Conversation, style: str, *, open_end: bool) -> Plan | None:
        """The plan for all conversations of this shape, or None when the texts cannot be told apart this way."""
        has_system = bool(conversation.system or self._default_system)
        shape = (open_end, has_system, *self._form.shape(conversation, style))
        if shape not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[shape] = self._make_plan(conversation, style, open_end=open_end)
        return self._plans[shape]

    def _make_plan(self, conversation: Conversation, style: str, *, open_end: bool) -> Plan | None:
        chat = self._chat(conversation, style)
        whole = self._render(chat.messages, conversation, open_end=open_end)
        marked = self._chat(conversation, "texts") if style == "literal" else chat
        shown = whole if marked is chat else self._render(marked.messages, conversation, open_end=open_end)
        if any(text.text and text.needed and mark(number) not in shown for number, text in enumerate(marked.texts)):
            return None
        answers = [
            self._around(conversation, chat, index)
            for index, message in enumerate(conversation.messages)
            if message.role in TRAINED_ROLES
        ]
        return make_plan(whole, answers, self._encoder, open_end=open_end)

    def _around(self, conversation: Conversation, chat: Chat, index: int) -> AnswerText:
        """The renderings around the answer that is message `index`."""
        at = index + len(chat.messages) - len(conversation.messages)
        prompts = [self._render(chat.messages[:at], conversation, open_end=True)]
        if self._variables.get("enable_thinking") is False:
            prompts.append(self._render(chat.messages[:at], conversation, open_end=True, enable_thinking=True))
        return AnswerText(
            prompts=tuple(prompts),
            before=self._render(chat.messages[:at], conversation, open_end=False),
            answered=self._render(chat.messages[: at + 1], conversation, open_end=False),
            marks=tuple(mark(number) for number, text in enumerate(chat.texts) if text.owner == index and text.text),
            called=conversation.messages[index].role == "function",
        )


def _is_answer(conversation: Conversation, owner: int) -> bool:
    return owner >= 0 and conversation.messages[owner].role in TRAINED_ROLES


def _align(plan: Plan, texts: Sequence[ChatText], real: str) -> list[ChatText] | None:
    """The texts as the template wrote them, or None when `real` is something else.

    It may have dropped blanks around them, or put them inside a JSON string.
    """
    found = list(texts)
    at = 0
    for bit in plan.bits():
        if isinstance(bit, str):
            written = bit if real.startswith(bit, at) else None
        else:
            text = texts[bit].text
            forms = (text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), _escape(text))
            written = next((form for form in forms if real.startswith(form, at)), None)
            found[bit] = replace(texts[bit], text=written or "")
        if written is None:
            return None
        at += len(written)
    return found if at == len(real) else None


def _escape(text: str) -> str:
    """Text as it stands inside a JSON string, where some templates put the results of tools."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _spell(bits: Sequence[Bit], texts: Sequence[ChatText]) -> str:
    return "".join(bit if isinstance(bit, str) else texts[bit].text for bit in bits)


def _split_at_mark(bits: Sequence[Bit]) -> tuple[str, str]:
    """The text before the first message's text and behind it, later ones still marked."""
    at = next(index for index, bit in enumerate(bits) if isinstance(bit, int))
    before, behind = (
        "".join(bit if isinstance(bit, str) else mark(bit) for bit in part) for part in (bits[:at], bits[at + 1 :])
    )
    return before, behind


def _shared_prefix(left: str, right: str) -> str:
    size = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:size]
