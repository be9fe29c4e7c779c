"""A box to chat with a model: what was said, a line to write in, system message, tools and generation options.

Builds its components into the page that is open, so any page can hold one. Knows sessions, no server.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from llamafactory.errors import DataError, LlamaFactoryError
from llamafactory.inference.answer_parts import ThoughtReader
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.session import Session, calls_of, new_session
from llamafactory.rendering.calls import read_tools
from llamafactory.rendering.chat_messages import THINK
from llamafactory.rendering.records import Message
from llamafactory.webui.markup import show_as_text

Bubble = dict[str, Any]
CSS = ".gradio-container { max-width: 60rem !important; width: 100% !important; margin: auto; }"


@dataclass(frozen=True)
class _Fields:
    """Components whose values every answer reads."""

    system: gr.Textbox
    tools: gr.Code
    max_new_tokens: gr.Slider
    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    repetition_penalty: gr.Slider
    seed: gr.Number
    skip_special_tokens: gr.Checkbox

    def inputs(self) -> list[Any]:
        return list(vars(self).values())


class ChatBox:
    """The box and what its buttons do.

    get_model: the model to ask, or None while none is loaded; called for every answer.
    """

    def __init__(self, get_model: Callable[[], ChatModel | None], options: GenerationOptions) -> None:
        self._get_model = get_model
        self._stops: dict[str, threading.Event] = {}
        self._build(options)

    def _build(self, options: GenerationOptions) -> None:
        messages = gr.State([])
        bubbles = gr.Chatbot(
            label="Chat", height="60vh", buttons=["copy", "copy_all"], allow_tags=False, elem_id="chat", layout="bubble"
        )
        with gr.Row():
            text = gr.Textbox(
                placeholder="Write a message", show_label=False,
                container=False, lines=1, max_lines=12,
                scale=8, elem_id="chat_input", autofocus=True,
            )  # fmt: skip
            send = gr.Button("Send", variant="primary", min_width=80)
            stop = gr.Button("Stop", variant="stop", min_width=80)
            clear = gr.Button("Clear", min_width=80)
        fields = _build_fields(options)
        ask: dict[str, Any] = {
            "fn": self.answer, "inputs": [text, messages, *fields.inputs()], "outputs": [bubbles, messages, text],
            "concurrency_limit": 16, "show_progress": "hidden",
        }  # fmt: skip
        text.submit(**ask, api_name="chat")
        send.click(**ask, api_visibility="private")
        stop.click(self.stop, queue=False, api_name="stop")
        clear.click(self.clear, outputs=[bubbles, messages], queue=False, api_name="clear")
        bubbles.clear(self.clear, outputs=[bubbles, messages], queue=False, api_visibility="private")

    def answer(
        self, request: gr.Request, text: str, messages: Sequence[Message], *values: Any
    ) -> Iterator[tuple[list[Bubble], list[Message], Any]]:
        """Stream the bubbles, the messages and the text box while the model answers."""
        if not text.strip():
            yield show(messages), list(messages), gr.skip()
            return
        session = self._session(messages, values)
        stop = self._stops[str(request.session_hash)] = threading.Event()
        options = _options(session.model.options, values)
        try:
            yield from _stream(session, text, options, stop)
        except LlamaFactoryError as error:
            raise gr.Error(show_as_text(str(error)), duration=None, print_exception=False) from error

    def stop(self, request: gr.Request) -> None:
        """End the answer that this page is waiting for."""
        found = self._stops.get(str(request.session_hash))
        if found is not None:
            found.set()

    def clear(self, request: gr.Request) -> tuple[list[Bubble], list[Message]]:
        """Forget the conversation."""
        self.stop(request)
        return [], []

    def forget(self, request: gr.Request) -> None:
        """The page was closed: nobody waits for its answer any more."""
        self.stop(request)
        self._stops.pop(str(request.session_hash), None)

    def _session(self, messages: Sequence[Message], values: Sequence[Any]) -> Session:
        model = self._get_model()
        if model is None:
            raise gr.Error("No model is loaded; load one first.", print_exception=False)
        system, tools = values[:2]
        session = replace(new_session(model), system=system or "", messages=list(messages))
        try:
            session.set_tools(tools or "")
        except DataError as error:
            raise gr.Error(show_as_text(str(error)), duration=None, print_exception=False) from error
        return session


def _build_fields(options: GenerationOptions) -> _Fields:
    with gr.Accordion("System message and tools", open=False):
        system = gr.Textbox(label="System message", lines=2, max_lines=8)
        tools = gr.Code(label="Tools (a JSON list of function schemas)", language="json", lines=4, max_lines=12)
        told = gr.Markdown(elem_id="tools_told")
        tools.change(check_tools, tools, told, queue=False, show_progress="hidden", api_name="check_tools")
    with gr.Accordion("Generation", open=False):
        with gr.Row():
            longest = gr.Slider(1, 8192, options.max_new_tokens or 1024, step=1, label="Longest answer (tokens)")
            temperature = gr.Slider(
                0, 2, 0 if options.is_greedy else options.temperature, step=0.01, label="Temperature (0 is greedy)"
            )
        with gr.Row():
            top_p = gr.Slider(0.01, 1, options.top_p, step=0.01, label="Top p")
            top_k = gr.Slider(0, 200, options.top_k, step=1, label="Top k (0 keeps all)")
        with gr.Row():
            penalty = gr.Slider(0.1, 2, options.repetition_penalty, step=0.01, label="Repetition penalty")
            seed = gr.Number(-1, label="Seed (-1 draws anew)", precision=0)
        skip = gr.Checkbox(options.skip_special_tokens, label="Leave out control tokens")
    return _Fields(system, tools, longest, temperature, top_p, top_k, penalty, seed, skip)


def _options(start: GenerationOptions, values: Sequence[Any]) -> GenerationOptions:
    longest, temperature, top_p, top_k, penalty, seed, skip = values[2:]
    return replace(
        start,
        do_sample=temperature > 0,
        max_new_tokens=int(longest),
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        repetition_penalty=float(penalty),
        seed=None if seed is None or seed < 0 else int(seed),
        skip_special_tokens=bool(skip),
    )


def _stream(
    session: Session, text: str, options: GenerationOptions, stop: threading.Event
) -> Iterator[tuple[list[Bubble], list[Message], Any]]:
    before = show([*session.messages, Message("observation" if session.awaits_result else "user", text)], session)
    thought, said = "", ""
    yield before, list(session.messages), ""
    with contextlib.closing(session.split_answer(text, options)) as pieces:
        for piece in pieces:
            thought += piece.text if piece.is_thought else ""
            said += "" if piece.is_thought else piece.text
            yield [*before, *_answer_bubbles(thought, said, thinks=piece.is_thought)], list(session.messages), ""
            if stop.is_set():
                break
    yield show(session.messages, session), list(session.messages), ""


def check_tools(text: str) -> str:
    """What is wrong with the tools as they are written, or how many there are."""
    try:
        found = read_tools(text or "", "tools")
    except DataError as error:
        return show_as_text(f"⚠ {error}")
    return f"{len(found)} tools" if found else ""


def show(messages: Sequence[Message], session: Session | None = None) -> list[Bubble]:
    """The bubbles of a conversation; thoughts folded, tool calls as JSON."""
    bubbles: list[Bubble] = []
    for message in messages:
        if message.role == "user":
            bubbles.append({"role": "user", "content": show_as_text(message.content)})
        elif message.role == "observation":
            bubbles.append({"role": "user", "content": _code(message.content), "metadata": {"title": "Result"}})
        else:
            bubbles += _message_bubbles(message, session)
    return bubbles


def _message_bubbles(message: Message, session: Session | None) -> list[Bubble]:
    text, calls = calls_of(message) if message.role == "function" else (message.content, [])
    reader = ThoughtReader(THINK) if session is None else session.thought_reader()
    thought, said = (first + rest for first, rest in zip(reader.push(text), reader.finish(), strict=True))
    bubbles = _answer_bubbles(thought, said, thinks=False)
    for call in calls:
        arguments = _code(json.dumps(call.arguments, indent=2, ensure_ascii=False), "json")
        bubbles.append({"role": "assistant", "content": arguments, "metadata": {"title": f"Calls {call.name}"}})
    return bubbles


def _answer_bubbles(thought: str, said: str, *, thinks: bool) -> list[Bubble]:
    bubbles: list[Bubble] = []
    if thought.strip():
        state = {"title": "Thinking", "status": "pending"} if thinks else {"title": "Thought", "status": "done"}
        bubbles.append({"role": "assistant", "content": show_as_text(thought), "metadata": state})
    if said.strip():
        bubbles.append({"role": "assistant", "content": show_as_text(said)})
    return bubbles


def _code(text: str, language: str = "") -> str:
    """A code block around any text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
