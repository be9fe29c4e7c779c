"""The dialect of a `Template`: compiles its slots once for a tokenizer, then writes conversations into layouts.

Ids and weights are decided here, in the statement that writes them. Knows records, not files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llamafactory.rendering.calls import read_function_message, read_tools
from llamafactory.rendering.encoder import TextEncoder
from llamafactory.rendering.jinja import ToolTexts, chat_template
from llamafactory.rendering.layout import Layout
from llamafactory.rendering.markup import Fragments
from llamafactory.rendering.mode import Exchange, Mode, exchanges
from llamafactory.rendering.ollama import TURN_MARK, Frame, ollama_template
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.template import BOS, CONTENT, TURN, Part, Placeholder, Slot, Special, Template, Token
from llamafactory.rendering.thinking import ThinkingMode, ThoughtRule, split_thought
from llamafactory.rendering.tools import ToolFormat, load_tool_format

Raw = int | str | Placeholder
Op = tuple[int, ...] | str | Placeholder
"""Control tokens, template text, or a placeholder."""

Ops = tuple[Op, ...]
Writer = Callable[[], None]

_MAX_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class AnswerSlot:
    """An answer's slot cut behind its stop token; `stops` is False when it has none."""

    head: Ops
    tail: Ops
    stops: bool


class SlotDialect:
    """Writes conversations in the form of one template."""

    def __init__(
        self,
        template: Template,
        encoder: TextEncoder,
        *,
        thinking: ThinkingMode,
        date: str,
        stop_ids: frozenset[int],
    ) -> None:
        self.template = template
        self._encoder = encoder
        self._thinking = thinking
        self._date = date
        compiled = functools.partial(compile_slot, encoder=encoder, name=template.name)
        self._prefix = compiled(template.prefix)
        self._system = compiled(template.system)
        self._tools = compiled(template.tools)
        self._user = compiled(template.user)
        self._observation = compiled(template.observation or template.user)
        self._separator = None if template.observation_separator is None else compiled(template.observation_separator)
        self._generation = compiled(template.generation, closed=True)
        later = template.observation_generation
        self._observation_generation = self._generation if later is None else compiled(later, closed=True)
        self._assistant = _answer_slot(template.assistant, encoder, template.name, stop_ids)
        self._function = _answer_slot(template.function or template.assistant, encoder, template.name, stop_ids)
        self._empty_thought = compiled((template.no_thought,)) if template.reasoning else ()
        self._tool_texts: dict[str, Fragments] = {}

    @property
    def reasoning_words(self) -> tuple[str, str] | None:
        """The words around a thought; None when the template has no reasoning."""
        return self.template.thought_words if self.template.reasoning else None

    def write(self, layout: Layout, conversation: Conversation, mode: Mode) -> None:
        """Write a whole conversation. Raises DataError when its messages are out of order or unreadable."""
        layout.source()
        _write(layout, self._prefix, mode.prompt_weight)
        system = self._system_writer(layout, conversation, mode.prompt_weight)
        if self.template.system_style == "block" and system is not None:
            _write(layout, self._system, mode.prompt_weight, content=system)
            system = None
        for exchange in exchanges(conversation, open_end=mode.generation):
            if exchange.number:
                layout.source()
            self._write_prompts(layout, exchange, mode, system=system)
            system = None
            self._write_generation(layout, exchange, mode)
            if exchange.answer is not None:
                self._write_answer(layout, exchange, conversation, mode)
        layout.finish()

    def write_alternative(self, layout: Layout, conversation: Conversation, other: Message) -> None:
        """Write `other` as another answer to the prompt of `conversation`, whose last message was just written."""
        layout.alternative()
        rule = self._rule(Mode(single_turn=True), last=True)
        prompt_has_it = self._empty_in_prompt(conversation.messages[-1], rule)
        empty = bool(rule.empty) and not prompt_has_it and not self._has_thought(other, rule)
        slot, fragments = self._answer(other, conversation, drop=rule.drop, empty=empty)
        self._write_target(layout, slot, fragments, weight=1.0, tail=0.0)
        layout.finish()

    def note(self, conversation: Conversation) -> str:
        """Nothing: a template writes every text as its fields say."""
        return ""

    @property
    def _tool_format(self) -> ToolFormat:
        return load_tool_format(self.template.tool_format)

    def to_jinja(self) -> str:
        """The chat template that renders the same text."""
        texts = ToolTexts(self._tool_format.TOOLS_JINJA, self._tool_format.CALLS_JINJA)
        stops = (self._assistant.stops, self._function.stops)
        return chat_template(self.template, texts, thinking=self._thinking, date=self._date, stops=stops)

    def to_ollama(self, *, writes_bos: bool) -> str:
        """The Ollama template that renders the same text for system, user, assistant and tool messages."""
        template = self.template
        bos = self._spell((BOS,))
        frame = Frame(
            prefix=self._spell(template.prefix),
            system=self._around(template.system),
            merged=template.system_style == "merged",
            user=self._around(template.user),
            tool=self._around(template.observation or template.user),
            tool_separator=self._spell_or_none(template.observation_separator),
            tool_generation=self._spell_or_none(template.observation_generation),
            generation=self._spell(template.generation),
            answer=self._around(template.assistant),
            default_system=template.default_system,
            empty_thought=template.no_thought if template.reasoning and not self._thinking.enable else "",
        )
        return ollama_template(frame, bos=bos, writes_bos=writes_bos)

    def _around(self, slot: Slot) -> tuple[str, str]:
        at = slot.index(CONTENT)
        return self._spell(slot[:at]), self._spell(slot[at + 1 :])

    def _spell(self, slot: Slot) -> str:
        return "".join(_spell(part, self._encoder) for part in slot)

    def _spell_or_none(self, slot: Slot | None) -> str | None:
        return None if slot is None else self._spell(slot)

    def _system_writer(self, layout: Layout, conversation: Conversation, weight: float) -> Writer | None:
        system = conversation.system or self.template.default_system
        tools = self._tools_text(conversation)
        if not system and not tools:
            return None
        if tools and not system and self.template.bare_tools:
            tools = [type(tools[0])(tools[0].lstrip("\n")), *tools[1:]]

        def write() -> None:
            layout.text(system, weight, control=not conversation.system)
            if tools:
                _write(layout, self._tools, weight, content=lambda: layout.fragments(tools, weight))

        return write

    def _tools_text(self, conversation: Conversation) -> Fragments:
        text = conversation.tools
        if not text:
            return []
        found = self._tool_texts.get(text)
        if found is None:
            tools = read_tools(text, conversation.source)
            found = self._tool_format.render_tools(tools, self._date) if tools else []
            if len(self._tool_texts) < _MAX_REMEMBERED:
                self._tool_texts[text] = found
        return found

    def _write_prompts(self, layout: Layout, exchange: Exchange, mode: Mode, *, system: Writer | None) -> None:
        weight = mode.prompt_weight
        groups = [[message] for message in exchange.prompts]
        if self._separator is not None and exchange.prompts[0].role == "observation":
            groups = [list(exchange.prompts)]
        for group in groups:

            def content(group: Sequence[Message] = group, system: Writer | None = system) -> None:
                if system is not None:
                    _write(layout, self._system, weight, content=system)
                for index, message in enumerate(group):
                    if index:
                        _write(layout, self._separator or (), weight)
                    layout.text(message.content, mode.weight(message, last=False), control=False)

            slot = self._observation if group[0].role == "observation" else self._user
            _write(layout, slot, weight, content=content, turn=exchange.number)
            system = None

    def _write_generation(self, layout: Layout, exchange: Exchange, mode: Mode) -> None:
        """Open the answer; an empty thought that stands in the prompt is never learnt."""
        after_result = exchange.prompts[-1].role == "observation"
        _write(layout, self._observation_generation if after_result else self._generation, mode.prompt_weight)
        rule = self._rule(mode, last=exchange.last)
        if self._empty_in_prompt(exchange.answer, rule):
            _write(layout, self._empty_thought, 0.0)

    def _write_answer(self, layout: Layout, exchange: Exchange, conversation: Conversation, mode: Mode) -> None:
        message = exchange.answer
        assert message is not None
        rule = self._rule(mode, last=exchange.last)
        empty = rule.empty == "answer" and not self._has_thought(message, rule)
        slot, fragments = self._answer(message, conversation, drop=rule.drop, empty=empty)
        weight = mode.weight(message, last=exchange.last)
        layout.target()
        self._write_target(layout, slot, fragments, weight=weight, tail=0.0 if exchange.last else mode.prompt_weight)

    def _write_target(
        self, layout: Layout, slot: AnswerSlot, fragments: Fragments, *, weight: float, tail: float
    ) -> None:
        _write(layout, slot.head, weight, content=lambda: layout.fragments(fragments, weight))
        if not slot.stops:
            layout.unstopped(weight)
        _write(layout, slot.tail, tail)

    def _answer(
        self, message: Message, conversation: Conversation, *, drop: bool, empty: bool
    ) -> tuple[AnswerSlot, Fragments]:
        """The slot and the text of an answer, thoughts and calls put into the template's form."""
        parts = split_thought(message.content, self.template.thought_words)
        lead = [] if drop else parts.lead
        text = parts.bare if drop else parts.text
        slot = self._function if message.role == "function" else self._assistant
        if empty and not lead:
            slot = replace(slot, head=(*self._empty_thought, *slot.head))
        if message.role != "function":
            return slot, [*lead, text]
        blank = text[: len(text) - len(text.lstrip())] if lead else ""
        before, calls = read_function_message(text.strip(), self.template.tool_call_words, conversation.source)
        return slot, [*lead, blank, before, *self._tool_format.render_calls(calls)]

    def _rule(self, mode: Mode, *, last: bool) -> ThoughtRule:
        if not self.template.reasoning:
            return ThoughtRule()
        return self._thinking.rule(last=last, single_turn=mode.single_turn, mask_history=mode.mask_history)

    def _has_thought(self, message: Message, rule: ThoughtRule) -> bool:
        parts = split_thought(message.content, self.template.thought_words)
        return parts.marked and not (rule.drop and parts.lead)

    def _empty_in_prompt(self, answer: Message | None, rule: ThoughtRule) -> bool:
        return rule.empty == "prompt" and (answer is None or not self._has_thought(answer, rule))


def _write(layout: Layout, ops: Ops, weight: float, *, content: Writer | None = None, turn: int = 0) -> None:
    """Write a compiled slot; template parts weigh `weight`, `content` writes the message."""
    for op in ops:
        if isinstance(op, tuple):
            layout.ids(op, weight)
        elif isinstance(op, str):
            layout.text(op, weight, control=True)
        elif op != CONTENT:
            layout.text(str(turn + 1), weight, control=True)
        elif content is not None:
            content()


def compile_slot(slot: Slot, encoder: TextEncoder, name: str, *, closed: bool = False) -> Ops:
    """Look up a slot's control tokens; text between two of them becomes ids at once.

    closed: nothing follows the slot's last text, so it becomes ids too.
    """
    return _fold(_look_up_all(slot, encoder, name), encoder, closed=closed)


def first_control_after_content(slot: Slot, encoder: TextEncoder, name: str) -> int | None:
    """The first control token behind the message's text, or None."""
    raw = _look_up_all(slot, encoder, name)
    return next((op for op in raw[raw.index(CONTENT) :] if isinstance(op, int)), None)


def _look_up_all(slot: Slot, encoder: TextEncoder, name: str) -> list[Raw]:
    """Control tokens, text (neighbours joined) and placeholders of a slot."""
    found: list[Raw] = []
    for part in slot:
        for piece in _look_up(part, encoder, name):
            if found and isinstance(piece, str) and isinstance(found[-1], str):
                found[-1] += piece
            else:
                found.append(piece)
    return found


def _look_up(part: Part, encoder: TextEncoder, name: str) -> Sequence[Raw]:
    if isinstance(part, str):
        return encoder.split(part)
    if isinstance(part, Special):
        token = encoder.special_id(part.name)
        return () if token is None else (token,)
    if isinstance(part, Token):
        return (encoder.token_id(part.text, f"the template {name}"),)
    return (part,)


def _spell(part: Part, encoder: TextEncoder) -> str:
    """How a part that is no message is written."""
    if isinstance(part, str):
        return part
    if isinstance(part, Special):
        token = encoder.special_id(part.name)
        return "" if token is None else encoder.token_text(token)
    if isinstance(part, Token):
        return part.text
    return TURN_MARK if part == TURN else ""


def _fold(raw: Sequence[Raw], encoder: TextEncoder, *, closed: bool) -> Ops:
    """Join control tokens, and the text that stands between two of them, into runs of ids."""
    folded: list[Op] = []
    run: tuple[int, ...] = ()
    spelling = ""
    for index, op in enumerate(raw):
        before, after = _control_at(raw, index - 1), _control_at(raw, index + 1)
        enclosed = before is not None and (after is not None or (closed and index + 1 == len(raw)))
        if isinstance(op, int):
            run, spelling = (*run, op), spelling + encoder.token_text(op)
        elif isinstance(op, str) and enclosed:
            run, spelling = run + encoder.enclosed(op, before, after), spelling + op
        else:
            folded += [run, op] if run else [op]
            encoder.remember_spelling(run, spelling)
            run, spelling = (), ""
    encoder.remember_spelling(run, spelling)
    return (*folded, run) if run else tuple(folded)


def _control_at(raw: Sequence[Raw], index: int) -> int | None:
    op = raw[index] if 0 <= index < len(raw) else None
    return op if isinstance(op, int) else None


def _answer_slot(slot: Slot, encoder: TextEncoder, name: str, stop_ids: frozenset[int]) -> AnswerSlot:
    """Cut an answer's slot behind the first stop token that follows the content."""
    raw = _look_up_all(slot, encoder, name)
    for index in range(raw.index(CONTENT), len(raw)):
        if raw[index] in stop_ids:
            head, tail = raw[: index + 1], raw[index + 1 :]
            return AnswerSlot(_fold(head, encoder, closed=False), _fold(tail, encoder, closed=False), stops=True)
    return AnswerSlot(_fold(raw, encoder, closed=False), (), stops=False)
