"""The dialect of the tokenizer's own chat template: finds prompts and answers by rendering, not by guessing.

A conversation is rendered with marks in place of its texts, then with the texts; where both agree, every character is
known to be the template's or a message's. An answer begins where the template's generation prompt ends and stops behind
the first control token the template writes after it. Where that cannot be shown, the run ends with a clear error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llamafactory.errors import DataError
from llamafactory.rendering.calls import read_function_message, read_tools, wrap
from llamafactory.rendering.encoder import TextEncoder
from llamafactory.rendering.layout import Layout
from llamafactory.rendering.markup import Markup
from llamafactory.rendering.mode import Mode, exchanges, place_of
from llamafactory.rendering.ollama import Frame, ollama_template
from llamafactory.rendering.records import TRAINED_ROLES, Conversation, Message
from llamafactory.rendering.sandbox import ChatTemplate, Refused, unusable
from llamafactory.rendering.thinking import split_thought

STYLES = ("thoughts", "texts", "literal")
"""How texts are marked: thoughts apart from answers, each message's text as one, or not at all."""

_MARK = re.compile("\ue0f0([0-9a-f]+)\ue0f1")
_THINK = ("<think>", "</think>")
_MAX_PLANS = 512

Bit = str | int
"""Text of the template, or the number of a message's text."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as the template is given it. texts: what the marks stand for, with the message each belongs to."""

    messages: list[dict[str, object]]
    texts: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class PlanTurn:
    """One prompt, its answer up to the stop token, and what follows when nothing else does."""

    source: tuple[Bit, ...]
    target: tuple[Bit, ...]
    stops: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the template's text and the messages' texts lie, for all conversations of one shape."""

    turns: tuple[PlanTurn, ...]
    tail: tuple[Bit, ...]

    def bits(self) -> Iterator[Bit]:
        """All bits in order."""
        for turn in self.turns:
            yield from turn.source
            yield from turn.target
        yield from self.tail


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
        probe = Conversation((Message("user", "a"), Message("assistant", "b")))
        turn = self._plan(probe, "texts", open_end=False)
        if turn is None:
            raise unusable("the prompt it writes for an answer does not begin the text it writes with that answer")
        stops = [self._encoder.split(bit)[-1] for bit in turn.turns[0].target[-1:] if isinstance(bit, str)]
        self.stop_ids = tuple(token for token in stops if isinstance(token, int))

    def write(self, layout: Layout, conversation: Conversation, mode: Mode) -> None:
        """Write a whole conversation. Raises DataError when the template refuses it or hides where its answers lie."""
        groups = list(exchanges(conversation, open_end=mode.generation))
        plan, texts = self._read(conversation, open_end=mode.generation)
        last_answer = groups[-1].answer
        weights = [self._weight(conversation, owner, mode, last_answer) for _, owner in texts]
        for exchange, turn in zip(groups, plan.turns, strict=True):
            layout.source()
            self._write(layout, turn.source, (texts, weights), mode.prompt_weight)
            if exchange.answer is not None:
                layout.target()
                weight = mode.weight(exchange.answer, last=exchange.last)
                self._write(layout, turn.target, (texts, weights), weight)
                if not turn.stops:
                    layout.unstopped(weight)
        self._write(layout, plan.tail, (texts, weights), 0.0)
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
        stop = "".join(bit for bit in first.target if isinstance(bit, str))
        head, generation = str(second.source[0]), "".join(map(str, second.source[2:]))
        after = _common_prefix(head, "".join(map(str, bare.tail)))
        head = head[len(after) :]
        frame = Frame(
            prefix=str(first.source[0]).removesuffix(head),
            user=(head, ""),
            generation=generation,
            answer=("", stop + after),
        )
        if full is None:
            return frame
        before, _, between = full.turns[0].source[:3]
        if str(between).endswith(head):
            return replace(frame, system=(str(before), str(between).removesuffix(head)), prefix_in_system=True)
        return replace(frame, system=("", str(between)), merged=True)

    def _read(self, conversation: Conversation, *, open_end: bool) -> tuple[Plan, Sequence[tuple[str, int]]]:
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
            f"{place_of(conversation)}: the tokenizer's chat template changes earlier text when messages "
            "are added, so nothing shows which tokens are the answers'; name a built-in template with `template: ...`"
        )

    def _check_literals(self, conversation: Conversation, style: str) -> None:
        """Refuse control tokens in texts the template writes unmarked, where they would count as its own."""
        unmarked = [conversation.tools]
        unmarked += [m.content for m in conversation.messages if m.role == "function" or style == "literal"]
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
        filled: tuple[Sequence[tuple[str, int]], Sequence[float]],
        weight: float,
    ) -> None:
        texts, weights = filled
        for bit in bits:
            if isinstance(bit, str):
                layout.fragments([Markup(bit)], weight, control=True)
            else:
                layout.text(texts[bit][0], weights[bit], control=False)

    def _render(self, messages: Sequence[object], conversation: Conversation, *, open_end: bool) -> str:
        tools = read_tools(conversation.tools, conversation.source)
        try:
            return self._template.render(
                {
                    **self._variables,
                    "messages": list(messages),
                    "tools": [dict(wrap(tool)) for tool in tools] or None,
                    "add_generation_prompt": open_end,
                }
            )
        except Refused as refusal:
            raise DataError(
                f"{place_of(conversation)}: the tokenizer's chat template refuses this conversation "
                f"({refusal}); change the row, or name a built-in template with `template: ...`"
            ) from refusal

    def _chat(self, conversation: Conversation, style: str) -> Chat:
        """The messages as the template is given them, texts replaced by marks unless `style` is `literal`."""
        texts: list[tuple[str, int]] = []

        def mark(text: str, owner: int) -> str:
            texts.append((text, owner))
            return f"\ue0f0{len(texts) - 1:x}\ue0f1" if text or owner < 0 else ""

        keep = style == "literal"
        messages: list[dict[str, object]] = []
        system = conversation.system or self._default_system
        if system:
            messages.append({"role": "system", "content": system if keep else mark(system, -1)})
        for index, message in enumerate(conversation.messages):
            if message.role == "function":
                messages.append(_calls_message(message, conversation.source))
                continue
            role = "tool" if message.role == "observation" else message.role
            parts = split_thought(message.content, _THINK)
            if keep:
                content = message.content
            elif style == "thoughts" and parts.lead and role == "assistant":
                thought = "".join(parts.lead).strip()[len(_THINK[0]) : -len(_THINK[1])].strip("\n")
                content = f"<think>\n{mark(thought, index)}\n</think>\n\n{mark(parts.bare, index)}"
            else:
                content = mark(message.content, index)
            messages.append({"role": role, "content": content})
        return Chat(messages, texts)

    def _plan_or_none(self, conversation: Conversation, style: str) -> Plan | None:
        try:
            return self._plan(conversation, style, open_end=False)
        except DataError:
            return None

    def _plan(self, conversation: Conversation, style: str, *, open_end: bool) -> Plan | None:
        """The plan for all conversations of this shape, or None when the texts cannot be told apart this way."""
        shape = _shape(conversation, style, open_end=open_end, system=bool(conversation.system or self._default_system))
        if shape not in self._plans:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[shape] = self._make_plan(conversation, style, open_end=open_end)
        return self._plans[shape]

    def _make_plan(self, conversation: Conversation, style: str, *, open_end: bool) -> Plan | None:
        messages = self._chat(conversation, style).messages
        whole = self._render(messages, conversation, open_end=open_end)
        shift = len(messages) - len(conversation.messages)
        turns: list[PlanTurn] = []
        at = 0
        for index, message in enumerate(conversation.messages):
            if message.role not in TRAINED_ROLES:
                continue
            prompt = self._render(messages[: index + shift], conversation, open_end=True)
            answered = self._render(messages[: index + shift + 1], conversation, open_end=False)
            marks = _MARK.findall(str(messages[index + shift]["content"]))
            span = self._find_answer(whole, prompt, answered, [f"\ue0f0{mark}\ue0f1" for mark in marks])
            if span is None or span[0] < at:
                return None
            start, end, stops = span
            turns.append(PlanTurn(_bits(whole[at:start]), _bits(whole[start:end]), stops))
            at = end
        if open_end:
            turns.append(PlanTurn(_bits(whole[at:]), (), stops=True))
            at = len(whole)
        return Plan(tuple(turns), _bits(whole[at:]))

    def _find_answer(
        self, whole: str, prompt: str, answered: str, marks: Sequence[str]
    ) -> tuple[int, int, bool] | None:
        """Start and end of an answer in `whole`, and whether a stop token ends it; None when it cannot be shown.

        prompt: the text before the answer, with the generation prompt. answered: the text up to the answer's end.
        """
        present = [mark for mark in marks if mark in whole]
        if not present:
            return self._find_unmarked(whole, prompt, answered)
        first, last = whole.index(present[0]), whole.index(present[-1]) + len(present[-1])
        if whole.startswith(prompt) and len(prompt) <= first:
            start = len(prompt)
        elif prompt.startswith(whole[:first]):
            start = first
        else:
            return None
        if present[-1] not in answered:
            return None
        behind = self._to_stop(answered[answered.index(present[-1]) + len(present[-1]) :], first=True)
        if not behind:
            return start, last, False
        if whole.startswith(behind, last):
            return start, last + len(behind), True
        other = self._to_stop(_MARK.split(whole[last:])[0], first=True)
        return start, last + len(other), bool(other)

    def _find_unmarked(self, whole: str, prompt: str, answered: str) -> tuple[int, int, bool] | None:
        if not whole.startswith(prompt) or not answered.startswith(prompt):
            return None
        written = self._to_stop(answered[len(prompt) :], first=False)
        text = written or answered[len(prompt) :]
        return (len(prompt), len(prompt) + len(text), bool(written)) if whole.startswith(text, len(prompt)) else None

    def _to_stop(self, text: str, *, first: bool) -> str:
        """`text` up to and with its first (or last) control token; empty when it has none."""
        parts = self._encoder.split_controls(text)
        places = [index for index, part in enumerate(parts) if isinstance(part, int)]
        if not places:
            return ""
        kept = parts[: (places[0] if first else places[-1]) + 1]
        return "".join(part if isinstance(part, str) else self._encoder.token_text(part) for part in kept)


def _calls_message(message: Message, source: str) -> dict[str, object]:
    parts = split_thought(message.content, _THINK)
    text = parts.bare if parts.lead else parts.text
    before, calls = read_function_message(text.strip(), ("<tool_call>", "</tool_call>"), source)
    written = [{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in calls]
    thought = "".join(parts.lead) + "\n\n" if parts.lead else ""
    return {"role": "assistant", "content": thought + before, "tool_calls": written}


def _shape(conversation: Conversation, style: str, *, open_end: bool, system: bool) -> tuple[object, ...]:
    """What a plan depends on."""
    messages: list[object] = []
    for message in conversation.messages:
        lead = style == "thoughts" and bool(split_thought(message.content, _THINK).lead)
        own = message.content if message.role == "function" or style == "literal" else bool(message.content)
        messages.append((message.role, lead, own))
    literal_system = conversation.system if style == "literal" else ""
    return (style, open_end, system, literal_system, conversation.tools, tuple(messages))


def _bits(text: str) -> tuple[Bit, ...]:
    """Cut marked text into the template's text and the numbers of messages' texts."""
    parts = (int(part, 16) if index % 2 else part for index, part in enumerate(_MARK.split(text)))
    return tuple(part for part in parts if part != "")


def _align(plan: Plan, texts: Sequence[tuple[str, int]], real: str) -> list[tuple[str, int]] | None:
    """The texts as the template wrote them (perhaps without blanks around), or None when `real` is something else."""
    found = list(texts)
    at = 0
    for bit in plan.bits():
        if isinstance(bit, str):
            written = bit if real.startswith(bit, at) else None
        else:
            text, owner = texts[bit]
            forms = (text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"))
            written = next((form for form in forms if real.startswith(form, at)), None)
            found[bit] = (written or "", owner)
        if written is None:
            return None
        at += len(written)
    return found if at == len(real) else None


def _common_prefix(left: str, right: str) -> str:
    size = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[:size]


def _spell(bits: Sequence[Bit], texts: Sequence[tuple[str, int]]) -> str:
    return "".join(bit if isinstance(bit, str) else texts[bit][0] for bit in bits)
