"""From the messages of a request to a conversation, as the renderer of training reads it.

Knows requests and records; neither templates nor engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamafactory.api.errors import ApiError
from llamafactory.api.media import PLACEHOLDERS, Kind, MediaLoader, MediaPart, kind_of
from llamafactory.api.schema import ChatMessage, ChatRequest, FunctionSchema, TextPart, Tool
from llamafactory.api.trees import check_tree
from llamafactory.rendering.calls import dump, read_whole_json
from llamafactory.rendering.records import Conversation, Media, Message

_SYSTEM = frozenset({"system", "developer"})
_FIELDS: Mapping[str, frozenset[str]] = {
    "tool_calls": frozenset({"assistant"}),
    "reasoning_content": frozenset({"assistant"}),
    "tool_call_id": frozenset({"tool"}),
}


class ConversationReader:
    """Reads conversations. kinds: media the model understands. thought_words: around a thought, None without any."""

    def __init__(
        self,
        loader: MediaLoader,
        *,
        max_media: int,
        kinds: frozenset[Kind] = frozenset(),
        thought_words: tuple[str, str] | None = None,
    ) -> None:
        self._loader = loader
        self._max_media = max_media
        self._kinds = kinds
        self._thought_words = thought_words

    async def read(self, request: ChatRequest) -> Conversation:
        """The conversation to answer. Raises ApiError for what cannot be answered."""
        messages = request.messages
        split = next((at for at, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
        for at, message in enumerate(messages):
            _check_fields(message, at, leading=at < split)
        self._check_media(messages)
        system = "\n\n".join([_plain_text(message, at) for at, message in enumerate(messages[:split])])
        found: dict[Kind, list[object]] = {kind: [] for kind in PLACEHOLDERS}
        turns = [await self._turn(messages[at], at, found) for at in _places(messages) if at >= split]
        if not turns or turns[-1].role in ("assistant", "function"):
            raise ApiError(
                400,
                "messages: the last one must come from the user or a tool; add what the model shall answer",
                param="messages",
            )
        media = Media(tuple(found["image"]), tuple(found["video"]), tuple(found["audio"]))
        return Conversation(tuple(turns), system=system, tools=_tools_text(request), media=media, source="messages")

    def _check_media(self, messages: Sequence[ChatMessage]) -> None:
        """Refuse media the model cannot see before any of them is read or fetched."""
        parts = [
            (place, part)
            for at, message in enumerate(messages)
            for place, part in _parts(message, f"messages.{at}")
            if not isinstance(part, TextPart)
        ]
        if len(parts) > self._max_media:
            raise ApiError(400, f"messages: {len(parts)} media, at most {self._max_media} are read", param="messages")
        for place, part in parts:
            if kind_of(part) not in self._kinds:
                raise ApiError(
                    400,
                    f"{place}: this model or its chat template cannot read {kind_of(part)} input; send text alone",
                    param=place,
                    code="unsupported_modality",
                )
        texts = [text for message in messages for text in _texts(message)]
        if parts and any(mark in text for mark in PLACEHOLDERS.values() for text in texts):
            raise ApiError(
                400,
                f"messages: beside media, texts may not hold {', '.join(PLACEHOLDERS.values())}, which stand for media",
                param="messages",
            )

    async def _turn(self, message: ChatMessage, at: int, found: Mapping[Kind, list[object]]) -> Message:
        text = await self._content(message, at, found)
        if message.role == "assistant":
            return self._answer(message, at, text)
        if message.role == "tool" or (message.role == "function" and message.name):
            return Message("observation", text)
        return Message("function" if message.role == "function" else "user", text)

    def _answer(self, message: ChatMessage, at: int, text: str) -> Message:
        words = self._thought_words
        if message.reasoning_content and words:
            text = f"{words[0]}\n{message.reasoning_content}\n{words[1]}\n\n{text}"
        if not message.tool_calls:
            return Message("assistant", text)
        calls = [
            {
                "name": call.function.name,
                "arguments": _arguments(call.function.arguments, f"messages.{at}.tool_calls.{n}"),
            }
            for n, call in enumerate(message.tool_calls)
        ]
        return Message("function", text + dump(calls))

    async def _content(self, message: ChatMessage, at: int, found: Mapping[Kind, list[object]]) -> str:
        pieces: list[str] = []
        for place, part in _parts(message, f"messages.{at}"):
            if isinstance(part, TextPart):
                pieces.append(part.text)
                continue
            found[kind_of(part)].append(await self._loader.load(part, place))
            pieces.append(PLACEHOLDERS[kind_of(part)])
        return message.content if isinstance(message.content, str) else "".join(pieces)


def check_chars(request: ChatRequest, most: int) -> None:
    """Raise ApiError when the texts of a request are longer than so many characters together."""
    found = sum(len(text) for message in request.messages for text in _texts(message)) + len(_tools_text(request))
    if found > most:
        raise too_long(found, most, "messages")


def too_long(found: int, most: int, param: str) -> ApiError:
    """The prompt has more characters than the server reads."""
    return ApiError(
        400,
        f"{param}: {found} characters, this server reads at most {most}; shorten the prompt",
        param=param,
        code="context_length_exceeded",
    )


def offered_tools(request: ChatRequest) -> list[Tool]:
    """The tools the model is told about: none where the client wants no call."""
    return [] if request.tool_choice == "none" else request.tools or []


def tool_schemas(request: ChatRequest) -> list[dict[str, object]]:
    """The schemas of the offered tools as the model is told of them."""
    return [{"type": "function", "function": _schema(tool.function)} for tool in offered_tools(request)]


def _tools_text(request: ChatRequest) -> str:
    tools = tool_schemas(request)
    return dump(tools) if tools else ""


def _schema(function: FunctionSchema) -> dict[str, object]:
    return function.model_dump(exclude_none=True, exclude={"strict"})


def _places(messages: Sequence[ChatMessage]) -> list[int]:
    """The places of the messages, results of tools in the order of the calls they answer."""
    keys: list[tuple[int, int]] = []
    group, order = 0, dict[str | None, int]()
    for message in messages:
        if message.role == "tool":
            keys.append((group, order.get(message.tool_call_id, len(order))))
            continue
        group, order = group + 1, {call.id: n for n, call in enumerate(message.tool_calls or []) if call.id}
        keys.append((group, -1))
    return sorted(range(len(messages)), key=keys.__getitem__)


def _check_fields(message: ChatMessage, at: int, *, leading: bool) -> None:
    place = f"messages.{at}"
    if message.role in _SYSTEM and not leading:
        raise ApiError(
            400, f"{place}: a {message.role} message must stand before all others; move it there", param=place
        )
    for field, roles in _FIELDS.items():
        if getattr(message, field) and message.role not in roles:
            raise ApiError(
                400, f"{place}.{field}: only for the role {', '.join(roles)}, not {message.role}", param=place
            )
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise ApiError(
            400, f"{place}.content: missing; only an assistant message with tool_calls needs none", param=place
        )
    if message.role in ("assistant", "tool") or message.role in _SYSTEM:
        for name, part in _parts(message, place):
            if not isinstance(part, TextPart):
                raise ApiError(400, f"{name}: a message of the role {message.role} holds text alone", param=name)


def _parts(message: ChatMessage, place: str) -> list[tuple[str, TextPart | MediaPart]]:
    if not isinstance(message.content, list):
        return []
    return [(f"{place}.content.{number}", part) for number, part in enumerate(message.content)]


def _texts(message: ChatMessage) -> list[str]:
    """Every text of a message, for counting."""
    parts = [part.text for _, part in _parts(message, "") if isinstance(part, TextPart)]
    calls = [call.function.arguments for call in message.tool_calls or []]
    plain = message.content if isinstance(message.content, str) else ""
    return [plain, message.reasoning_content or "", *parts, *calls]


def _plain_text(message: ChatMessage, at: int) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for _, part in _parts(message, f"messages.{at}") if isinstance(part, TextPart))


def _arguments(text: str, place: str) -> object:
    value = read_whole_json(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise ApiError(400, f"{place}.function.arguments: must be the JSON text of an object", param=place)
    check_tree(value, f"{place}.function.arguments")
    return value
