"""One renderer makes training tokens and their loss weights, prompts, stop tokens and the exported chat templates.

Knows the template, the tokenizer and the reasoning mode of a run; knows no files, no batches and no model.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from llamafactory.errors import ConfigError
from llamafactory.logs import notice
from llamafactory.rendering.calls import ToolCall, read_tools
from llamafactory.rendering.encoder import TextEncoder
from llamafactory.rendering.from_tokenizer import TokenizerDialect
from llamafactory.rendering.layout import Draft, Layout, Segment, to_turns
from llamafactory.rendering.mode import Mode
from llamafactory.rendering.records import Conversation, Feedback, Message, Preference, Prompt, Record, Text
from llamafactory.rendering.sandbox import ChatTemplate
from llamafactory.rendering.skeleton import Skeletons
from llamafactory.rendering.slots import SlotDialect, first_control_after_content
from llamafactory.rendering.template import Template, get_template
from llamafactory.rendering.thinking import ThinkingMode
from llamafactory.rendering.tokenizer_fix import TokenizerChanges, fix_tokenizer
from llamafactory.rendering.tokens import Piece, Turn
from llamafactory.rendering.tools import load_tool_format

DEFAULT_DATE = "26 Jul 2024"
"""Today's date in prompts that state one, when `template_date` is left out; the clock is never read."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")


class TemplateOptions(Protocol):
    """What rendering needs of the section `template` of a run's configuration."""

    @property
    def template(self) -> str | None: ...
    @property
    def tool_format(self) -> str | None: ...
    @property
    def default_system(self) -> str | None: ...
    @property
    def enable_thinking(self) -> bool | None: ...
    @property
    def preserve_thinking(self) -> bool: ...
    @property
    def template_date(self) -> str | None: ...


class Dialect(Protocol):
    """Writes conversations in one form: that of a `Template`, or of the tokenizer's own chat template."""

    @property
    def reasoning_words(self) -> tuple[str, str] | None:
        """The words around the thought an answer may begin with; None when the template has no reasoning."""
        ...

    def write(self, layout: Layout, conversation: Conversation, mode: Mode) -> None:
        """Write a whole conversation."""
        ...

    def write_alternative(self, layout: Layout, conversation: Conversation, other: Message) -> None:
        """Write another last answer to the prompt just written."""
        ...

    def note(self, conversation: Conversation) -> str:
        """What a user should know about how a conversation is written, or nothing."""
        ...

    def to_jinja(self) -> str:
        """The chat template that renders the same text."""
        ...

    def to_ollama(self, *, writes_bos: bool) -> str:
        """The Ollama template for system, user and assistant messages."""
        ...


@dataclass(frozen=True)
class Renderer:
    """Turns records into tokens. Build it with `build_renderer`.

    tool_format: name of the format whose calls are read. stop_ids: tokens that end an answer. changes: what was changed
    in the tokenizer. text_frame: ids before and behind plain text. fingerprint: changes whenever the same records would
    render to other tokens. skeletons: a quicker way to write conversations, where the dialect has one.
    """

    name: str
    dialect: Dialect
    encoder: TextEncoder
    tool_format: str
    stop_ids: tuple[int, ...]
    changes: TokenizerChanges
    text_frame: tuple[tuple[int, ...], tuple[int, ...]]
    fingerprint: str
    skeletons: Skeletons | None = None

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The texts of `stop_ids`."""
        return tuple(map(self.encoder.token_text, self.stop_ids))

    @property
    def reasoning_words(self) -> tuple[str, str] | None:
        """The words around the thought an answer may begin with; None when the template has no reasoning."""
        words = self.dialect.reasoning_words
        return None if words is None else (words[0].strip(), words[1].strip())

    def render(
        self, conversation: Conversation, *, train_on_prompt: bool = False, mask_history: bool = False
    ) -> list[Turn]:
        """Tokens of one conversation, turn by turn; `Message.loss` overrides both options for its message."""
        return self.encode([conversation], train_on_prompt=train_on_prompt, mask_history=mask_history)[0]

    def encode(
        self, records: Sequence[Record], *, train_on_prompt: bool = False, mask_history: bool = False
    ) -> list[list[Turn]]:
        """Tokens of many records in one call to the tokenizer.

        Conversation: a turn for each answer. Text: one turn without a prompt. Feedback, Prompt: one turn, the prompt
        never learnt; a Prompt's answer is its reference. Preference: two turns with the same prompt, chosen first.

        Raises DataError naming the row when messages are out of order or tool calls cannot be read.
        """
        mode = Mode(train_on_prompt=train_on_prompt, mask_history=mask_history)
        with _collection_paused():
            return self._to_turns([self._draft(record, mode) for record in records])

    def note(self, record: Record) -> str:
        """What a user should know about how a record is rendered, one sentence for all records of its kind, or nothing.

        For parts of it without effect, and thoughts that the tokenizer's own template cannot keep apart from text.
        """
        if isinstance(record, Text):
            return ""
        if isinstance(record, Conversation):
            return self.dialect.note(record)
        talk = record.prompt if isinstance(record, Preference) else record.conversation
        if any(message.loss is not None for message in talk.messages):
            return (
                "`loss` and `weight` of messages have no effect here, because whole answers are compared, judged or "
                "made; only supervised fine-tuning (stage: sft) weighs messages"
            )
        return self.dialect.note(talk)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation that ends with a user message or tool result, up to where the answer begins."""
        turns = self._to_turns([self._layout(conversation, Mode(single_turn=True, generation=True))])[0]
        return [token for turn in turns for piece in (*turn.source, *turn.target) for token in piece.ids]

    def text(self, conversation: Conversation, *, generation: bool = False) -> str:
        """The text of a conversation with its control tokens spelled out, as the exported chat template renders it."""
        drafts = self._layout(conversation, Mode(single_turn=True, generation=generation))
        return "".join(self._spell(item) for draft in drafts for item in (*draft.source, *draft.target))

    def parse_tools(self, text: str, tools: str = "") -> list[ToolCall] | str:
        """The tool calls a model wrote, or the text itself when it holds none or a broken one.

        tools: JSON text of the schemas the model was told of (`Conversation.tools`); arguments that a format writes
        without quotes are then read as the types they declare. Raises DataError when it is no list of schemas.
        """
        return load_tool_format(self.tool_format).parse_calls(text, read_tools(tools, "")) or text

    def to_jinja(self) -> str:
        """A chat template for transformers and serving engines that renders the text this renderer tokenizes."""
        return self.dialect.to_jinja()

    def to_ollama(self) -> str:
        """A Go template for an Ollama Modelfile, whitespace exact; `stop_words` are its stop parameters.

        The begin token is left out where the tokenizer writes it by itself, as Ollama then does.
        """
        return self.dialect.to_ollama(writes_bos=bool(self.text_frame[0]))

    def _to_turns(self, drafts: Sequence[Sequence[Draft]]) -> list[list[Turn]]:
        return to_turns(drafts, self.encoder, self.encoder.special_id("eos"))

    def _new_layout(self) -> Layout:
        return Layout(self.encoder, frozenset(self.stop_ids), self.encoder.special_id("eos"))

    def _layout(self, conversation: Conversation, mode: Mode) -> list[Draft]:
        if self.skeletons is not None:
            return self.skeletons.drafts(conversation, mode)
        layout = self._new_layout()
        self.dialect.write(layout, conversation, mode)
        return layout.drafts

    def _draft(self, record: Record, mode: Mode) -> list[Draft]:
        if isinstance(record, Conversation):
            return self._layout(record, mode)
        if isinstance(record, Text):
            return [self._text_draft(record)]
        if isinstance(record, Feedback):
            return _one_prompt(self._layout(record.conversation, Mode(single_turn=True)), answers=1)
        if isinstance(record, Preference):
            return self._preference_draft(record)
        return self._prompt_draft(record)

    def _text_draft(self, record: Text) -> Draft:
        start, end = self.text_frame
        layout = self._new_layout()
        layout.source()
        layout.target()
        layout.ids(start, 1.0)
        layout.text(record.text, 1.0, control=False)
        layout.ids(end, 1.0)
        layout.finish()
        return layout.drafts[0]

    def _preference_draft(self, record: Preference) -> list[Draft]:
        conversation = replace(record.prompt, messages=(*record.prompt.messages, record.chosen))
        layout = self._new_layout()
        self.dialect.write(layout, conversation, Mode(single_turn=True))
        self.dialect.write_alternative(layout, conversation, record.rejected)
        return _one_prompt(layout.drafts, answers=2)

    def _prompt_draft(self, record: Prompt) -> list[Draft]:
        if not record.reference:
            return _one_prompt(self._layout(record.conversation, Mode(single_turn=True, generation=True)), answers=1)
        answer = Message(record.reference_role, record.reference)
        conversation = replace(record.conversation, messages=(*record.conversation.messages, answer))
        return _one_prompt(self._layout(conversation, Mode(single_turn=True)), answers=1)

    def _spell(self, item: Piece | Segment) -> str:
        if isinstance(item, Segment):
            return item.text
        return self.encoder.spell(item.ids)


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep the garbage collector out: a batch makes many small values, none of them garbage, which it scans in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _one_prompt(drafts: Sequence[Draft], *, answers: int) -> list[Draft]:
    """Join all turns but the answers of the last one into a single prompt."""
    first = len(drafts) - answers
    source = [item for draft in drafts[:first] for item in (*draft.source, *draft.target)]
    source += drafts[first].source
    return [Draft(source, draft.target) for draft in drafts[first:]]


def build_renderer(
    tokenizer: PreTrainedTokenizerBase, config: TemplateOptions, *, split_special_tokens: bool | None = None
) -> Renderer:
    """Build the renderer of a run, from its template or, without one, from the tokenizer's own chat template.

    `tokenizer` gets the template's end and stop tokens, in place (see `Renderer.changes`). split_special_tokens False
    lets control tokens typed in message text act as such; otherwise message text stays text.

    Raises ConfigError when the template is unknown or does not fit the tokenizer.
    """
    if config.template is None and tokenizer.chat_template:
        return _own_renderer(tokenizer, config, read_controls=split_special_tokens is False)
    if config.template is None:
        notice("template: neither the run nor the tokenizer names one, so messages are joined as they are ('empty')")
    template = _configured(get_template(config.template or "empty"), config)
    changes = fix_tokenizer(tokenizer, template)
    encoder = TextEncoder(tokenizer, read_controls=split_special_tokens is False)
    stop_ids = _stop_ids(template, encoder)
    thinking = ThinkingMode(config.enable_thinking, config.preserve_thinking)
    date = spell_date(config.template_date)
    dialect = SlotDialect(template, encoder, thinking=thinking, date=date, stop_ids=frozenset(stop_ids))
    new_layout = functools.partial(Layout, encoder, frozenset(stop_ids), encoder.special_id("eos"))
    return Renderer(
        name=template.name,
        dialect=dialect,
        encoder=encoder,
        tool_format=template.tool_format,
        stop_ids=stop_ids,
        changes=changes,
        text_frame=_text_frame(tokenizer, encoder, template.text_end),
        fingerprint=_fingerprint(encoder, (template, thinking, date, stop_ids)),
        skeletons=Skeletons(dialect, new_layout, encoder, template.thought_words),
    )


def _own_renderer(tokenizer: PreTrainedTokenizerBase, config: TemplateOptions, *, read_controls: bool) -> Renderer:
    """The renderer of a tokenizer's own chat template."""
    if not isinstance(tokenizer.chat_template, str):
        raise ConfigError(
            "template: the tokenizer brings several chat templates, so its own cannot be used without a choice; name a "
            "built-in template with `template: ...`"
        )
    changes = fix_tokenizer(tokenizer, get_template("empty"))
    encoder = TextEncoder(tokenizer, read_controls=read_controls)
    source = ChatTemplate(tokenizer.chat_template, date=spell_date(config.template_date))
    variables: dict[str, object] = dict(tokenizer.special_tokens_map)
    if config.enable_thinking is not None:
        variables["enable_thinking"] = config.enable_thinking
    dialect = TokenizerDialect(source, encoder, variables=variables, default_system=config.default_system or "")
    eos = encoder.special_id("eos")
    stop_ids = tuple(dict.fromkeys((*(() if eos is None else (eos,)), *dialect.stop_ids)))
    return Renderer(
        name="tokenizer",
        dialect=dialect,
        encoder=encoder,
        tool_format=config.tool_format or _likely_tool_format(tokenizer.chat_template),
        stop_ids=stop_ids,
        changes=changes,
        text_frame=_text_frame(tokenizer, encoder, ""),
        fingerprint=_fingerprint(
            encoder, (source.source, source.date, sorted(variables.items()), config.default_system)
        ),
    )


def _configured(template: Template, config: TemplateOptions) -> Template:
    """The template with the run's own system prompt and tool format; the template itself stays as it is."""
    if config.default_system is not None:
        template = replace(template, default_system=config.default_system)
    if config.tool_format is not None:
        load_tool_format(config.tool_format)
        template = replace(template, tool_format=config.tool_format)
    return template


def _likely_tool_format(source: str) -> str:
    """The format whose calls a chat template writes, told by its marks; for reading calls only."""
    marks = {"<tool_call>": "qwen", "[TOOL_CALLS]": "mistral", '"parameters": ': "llama3"}
    return next((name for mark, name in marks.items() if mark in source), "default")


def _fingerprint(encoder: TextEncoder, identity: object) -> str:
    return hashlib.sha256((repr(identity) + encoder.fingerprint).encode()).hexdigest()


def spell_date(date: str | None) -> str:
    """A date as templates print it: `2025-01-15` becomes `15 Jan 2025`, other text stays; None is `DEFAULT_DATE`."""
    if date is None:
        return DEFAULT_DATE
    found = _ISO_DATE.fullmatch(date.strip())
    if found is None:
        return date
    year, month, day = found.groups()
    if not 1 <= int(month) <= 12:
        raise ConfigError(f"template_date: {date!r} has no month {month}; write a date like 2025-01-15 or 15 Jan 2025")
    return f"{day} {_MONTHS[int(month) - 1]} {year}"


def _stop_ids(template: Template, encoder: TextEncoder) -> tuple[int, ...]:
    """Tokens that end an answer: the end token, the stop words, and what the template writes behind an answer."""
    words = (encoder.token_id(word, f"the template {template.name}") for word in template.stop_words)
    eos = encoder.special_id("eos")
    stops = dict.fromkeys(token for token in (eos, *words) if token is not None)
    written = first_control_after_content(template.assistant, encoder, template.name)
    if written is not None and written not in stops:
        stops[written] = None
    return tuple(stops)


def _text_frame(
    tokenizer: PreTrainedTokenizerBase, encoder: TextEncoder, end: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and behind plain text: the begin token if the tokenizer writes one, and an end token."""
    bos, eos = encoder.special_id("bos"), encoder.special_id("eos")
    eos = encoder.find_token(end) if encoder.find_token(end) is not None else eos
    written = list(tokenizer("a")["input_ids"][:1])
    return (bos,) if bos is not None and written == [bos] else (), () if eos is None else (eos,)
