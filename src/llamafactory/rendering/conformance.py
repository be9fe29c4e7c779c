"""Whether a model is served what it was trained on: one conversation as training tokens, prompt and exported template.

Compares token ids. Knows renderers and tokenizers, no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from llamafactory.errors import LlamaFactoryError
from llamafactory.rendering.calls import read_function_message, read_tools
from llamafactory.rendering.records import Conversation, Feedback, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import get_template
from llamafactory.rendering.tokens import Turn

Verdict = Literal["equal", "border", "opened", "differs", "unsupported"]

REASONS: Mapping[Verdict, str] = {
    "border": (
        "the template writes text, not a control token, before an answer: a serving engine that tokenizes the whole "
        "conversation may join the two, training and prompts never do"
    ),
    "opened": (
        "with `enable_thinking` left out every example keeps what it has: a thought is learnt behind the bare prompt, "
        "while a prompt to answer asks for none, as the examples without one were learnt"
    ),
    "unsupported": "the template refuses this kind of conversation",
}

_SCHEMA = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City name"},
            "unit": {"type": "string", "description": "Unit", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "description": "Days", "items": {"type": "integer"}},
        },
        "required": ["city"],
    },
}
_TOOLS = json.dumps([{"type": "function", "function": _SCHEMA}])
_CALL = '{"name": "get_weather", "arguments": {"city": "北京", "days": [1, 2]}}'
_CALLS = json.dumps([{"name": "get_weather", "arguments": {"city": city}} for city in ("Oslo", "Rom")])

MODES: Mapping[str, Mapping[str, bool | None]] = {
    "thinking off": {"enable_thinking": False},
    "thinking left open": {"enable_thinking": None},
    "thoughts kept": {"preserve_thinking": True},
}
"""Options of a run that templates of reasoning models are compared under too; the others write the same in all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one comparison found; `detail` shows the first difference."""

    case: str
    verdict: Verdict
    detail: str = ""


def cases() -> dict[str, Conversation]:
    """The conversations a template is compared on, each ending with an answer."""

    def talk(*texts: str) -> tuple[Message, ...]:
        return tuple(Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))

    tool_use = (Message("function", _CALL), Message("observation", '{"temp": 21}'), Message("assistant", "21 degrees."))
    results = (Message("observation", '{"temp": 3}'), Message("observation", "25"), Message("assistant", "3 and 25."))
    return {
        "single": Conversation(talk("How are you?", "I am fine!")),
        "system": Conversation(talk("How are you?", "I am fine!"), system="Be terse."),
        "multi-turn": Conversation(
            talk("Hi", "Hello.", "1+1?\nExplain.", "It is 2.\n\n- one\n", "再见", "Bye"), "Sys."
        ),
        "thinking": Conversation(talk("q1", "<think>\none\n</think>\n\na1", "q2", "<think>\ntwo\n</think>\n\na2")),
        "tools": Conversation(talk("Hi", "Hello."), system="Sys.", tools=_TOOLS),
        "tool calls": Conversation((*talk("Weather?"), *tool_use, *talk("Thanks", "Welcome.")), tools=_TOOLS),
        "parallel calls": Conversation((*talk("Weather?"), Message("function", _CALLS)), "Sys.", _TOOLS),
        "two results": Conversation((*talk("Weather?"), Message("function", _CALLS), *results), tools=_TOOLS),
    }


def compare(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Compare, for each case, the ids of training, of the inference prompt and of the exported chat template."""
    return [_compare(renderer, tokenizer, case, conversation) for case, conversation in cases().items()]


def compare_mode(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, mode: str) -> Finding:
    """Compare conversations with a thought in each answer, in none, and before calls, as a run under `mode` has them.

    The first comparison that is not equal is told.
    """
    known = cases()
    chosen = [known["thinking"], known["multi-turn"], _thought_before_calls()]
    found = [_compare(renderer, tokenizer, mode, conversation) for conversation in chosen]
    return next((finding for finding in found if finding.verdict != "equal"), found[0])


def _thought_before_calls() -> Conversation:
    asked, result = Message("user", "Weather?"), Message("observation", "25")
    called = Message("function", "<think>\nask\n</think>\n\n" + _CALL)
    return Conversation((asked, called, result, Message("assistant", "<think>\nsay\n</think>\n\n25.")), tools=_TOOLS)


def _compare(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, case: str, conversation: Conversation) -> Finding:
    prompt = replace(conversation, messages=conversation.messages[:-1])
    try:
        turn = renderer.encode([Feedback(conversation, desirable=True)])[0][0]
        asked = renderer.prompt_ids(prompt)
        whole = _apply(renderer, tokenizer, conversation, generation=False)
        open_end = _apply(renderer, tokenizer, prompt, generation=True)
    except LlamaFactoryError as error:
        return Finding(case, "unsupported", str(error))
    except jinja2.TemplateError as error:
        return Finding(case, "unsupported", f"the exported chat template refuses it: {error}")
    trained, full = _source_ids(turn), _source_ids(turn) + _target_ids(turn)
    opened = _opens_no_thought(renderer, tokenizer, asked, trained)
    if trained[: len(asked)] != asked and not opened:
        return Finding(case, "differs", _show(tokenizer, "training", trained, "prompt", asked))
    pairs = (("prompt", asked, open_end), ("training", full, whole))
    for name, ours, exported in pairs:
        if ours != exported:
            text = renderer.text(prompt, generation=True) if name == "prompt" else renderer.text(conversation)
            same_text = text == _text(
                renderer, tokenizer, prompt if name == "prompt" else conversation, name == "prompt"
            )
            verdict: Verdict = "border" if same_text and _text_before_answers(renderer, turn) else "differs"
            return Finding(case, verdict, _show(tokenizer, name, ours, "exported template", exported))
    return Finding(case, "opened" if opened else "equal")


def _opens_no_thought(
    renderer: Renderer, tokenizer: PreTrainedTokenizerBase, asked: list[int], trained: list[int]
) -> bool:
    """True when the prompt is the one that was trained with, and an empty thought."""
    behind = tokenizer.decode(asked[len(trained) :])
    return asked[: len(trained)] == trained and behind != "" and behind == get_template(renderer.name).no_thought


def _text_before_answers(renderer: Renderer, turn: Turn) -> bool:
    """True when an answer follows text directly, so that whole-string tokenization may join them."""
    last = turn.source[-1].ids[-1] if turn.source else None
    return last is not None and not renderer.encoder.is_control(last)


def _source_ids(turn: Turn) -> list[int]:
    return [token for piece in turn.source for token in piece.ids]


def _target_ids(turn: Turn) -> list[int]:
    return [token for piece in turn.target for token in piece.ids]


def _apply(
    renderer: Renderer, tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, generation: bool
) -> list[int]:
    text = _text(renderer, tokenizer, conversation, generation)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, conversation: Conversation, generation: bool) -> str:
    tools = [dict(tool) for tool in read_tools(conversation.tools, "")]
    return tokenizer.apply_chat_template(
        list(chat_messages(conversation)),
        tools=tools or None,
        chat_template=renderer.to_jinja(),
        add_generation_prompt=generation,
        tokenize=False,
    )


def chat_messages(conversation: Conversation) -> Iterator[dict[str, object]]:
    """The messages of a conversation as chat templates of transformers take them."""
    if conversation.system:
        yield {"role": "system", "content": conversation.system}
    for message in conversation.messages:
        if message.role == "function":
            before, calls = read_function_message(message.content, ("<tool_call>", "</tool_call>"), conversation.source)
            written = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in calls
            ]
            yield {"role": "assistant", "content": before, "tool_calls": written}
        else:
            yield {"role": "tool" if message.role == "observation" else message.role, "content": message.content}


def _show(tokenizer: PreTrainedTokenizerBase, name: str, left: list[int], other: str, right: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    near = slice(max(at - 2, 0), at + 3)
    tokens = tokenizer.convert_ids_to_tokens
    return f"token {at}: {name} {tokens(left[near])}, {other} {tokens(right[near])}"
