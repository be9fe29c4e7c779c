"""From what a request says about sampling to the options of an engine; what it leaves out is the server's own choice.

Knows requests and options, no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamafactory.api.conversation import offered_tools
from llamafactory.api.errors import ApiError
from llamafactory.api.schema import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Sampling,
    Tool,
    ToolChoice,
)
from llamafactory.api.settings import Limits
from llamafactory.api.trees import check_schema, check_tree
from llamafactory.inference.engine import GenerationOptions
from llamafactory.rendering.calls import dump

_SEEDS = 2**63
_VALUES = frozenset({"const", "enum", "default", "examples"})  # words of a schema whose values are no schemas
_SAME_NAME = (
    "top_p", "top_k", "do_sample", "presence_penalty", "frequency_penalty", "repetition_penalty", "skip_special_tokens",
    "seed",
)  # fmt: skip


def chat_options(request: ChatRequest, defaults: GenerationOptions, limits: Limits) -> list[GenerationOptions]:
    """The options of each answer to a chat. Raises ApiError for what is beyond the limits or contradicts itself."""
    longest = request.max_completion_tokens
    if longest is not None and request.max_tokens is not None and longest != request.max_tokens:
        raise ApiError(
            400,
            f"max_tokens: {request.max_tokens} and max_completion_tokens: {longest} say the same and differ; leave out "
            "max_tokens",
            param="max_tokens",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: has no effect unless logprobs is true", param="top_logprobs")
    options = _shared(request, defaults, limits, longest or request.max_tokens)
    top = (request.top_logprobs or 0) if request.logprobs else None
    return _each(request, replace(options, top_logprobs=top, json_schema=_schema(request)))


def completion_options(
    request: CompletionRequest, defaults: GenerationOptions, limits: Limits
) -> list[GenerationOptions]:
    """The options of each answer to one plain text."""
    options = _shared(request, defaults, limits, request.max_tokens)
    return _each(request, replace(options, top_logprobs=request.logprobs))


def is_forced(request: ChatRequest) -> bool:
    """True when the answer must be a tool call."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, ToolChoice)


def check_tools(request: ChatRequest) -> None:
    """Raise ApiError for tools, or a choice of one, that cannot be followed."""
    tools, choice = request.tools or [], request.tool_choice
    names = [tool.function.name for tool in tools]
    for number, tool in enumerate(tools):
        place = f"tools.{number}.function"
        check_tree(tool.function.description, place)
        check_schema(tool.function.parameters or {}, f"{place}.parameters")
    if len(set(names)) != len(names):
        raise ApiError(400, "tools: two functions have the same name; give each its own", param="tools")
    if is_forced(request) and not tools:
        raise ApiError(400, "tool_choice: asks for a call but there are no tools; send tools", param="tool_choice")
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise ApiError(
            400, f"tool_choice: {choice.function.name!r} is none of the tools ({', '.join(names)})", param="tool_choice"
        )


def _shared(request: Sampling, defaults: GenerationOptions, limits: Limits, longest: int | None) -> GenerationOptions:
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: has no effect unless stream is true", param="stream_options")
    if (request.n or 1) > limits.choices:
        raise ApiError(400, f"n: got {request.n}, at most {limits.choices} answers are given", param="n")
    if longest is not None and longest > limits.new_tokens:
        raise ApiError(
            400, f"max_tokens: got {longest}, this server gives at most {limits.new_tokens} tokens", param="max_tokens"
        )
    changes: dict[str, object] = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if request.temperature is not None:
        changes["temperature"] = request.temperature
        changes.setdefault("do_sample", request.temperature > 0)
    if longest is not None:
        changes["max_new_tokens"] = longest
    changes["top_k"] = max(request.top_k if request.top_k is not None else defaults.top_k, 0)
    changes["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return replace(defaults, **changes)  # type: ignore[arg-type]


def _each(request: Sampling, options: GenerationOptions) -> list[GenerationOptions]:
    """Options for every answer; a seed counts up, so that sampled answers differ."""
    if options.seed is None:
        return [options] * (request.n or 1)
    first = options.seed
    return [
        replace(options, seed=(first + number + _SEEDS) % (2 * _SEEDS) - _SEEDS) for number in range(request.n or 1)
    ]


def _schema(request: ChatRequest) -> str:
    """JSON text of the schema the answer must follow; empty when it is free."""
    wanted = request.response_format
    schema = ""
    if isinstance(wanted, JsonSchemaFormat):
        check_tree(wanted.json_schema.schema_, "response_format.json_schema.schema")
        schema = dump(wanted.json_schema.schema_)
    elif isinstance(wanted, JsonObjectFormat):
        schema = "{}"
    if schema and offered_tools(request):
        raise ApiError(
            400,
            "response_format: an answer that must be JSON cannot be a tool call; leave out tools or response_format",
            param="response_format",
        )
    return _calls_schema(request) if is_forced(request) else schema


def _calls_schema(request: ChatRequest) -> str:
    """The schema of a JSON list of calls."""
    choice, tools = request.tool_choice, request.tools or []
    chosen = choice.function.name if isinstance(choice, ToolChoice) else None
    fitting = [tool for tool in tools if chosen is None or tool.function.name == chosen]
    schema: dict[str, object] = {"type": "array", "minItems": 1, "items": {"anyOf": [_call_schema(t) for t in fitting]}}
    if chosen is not None or request.parallel_tool_calls is False:
        schema["maxItems"] = 1
    schema["$defs"] = {t.function.name: _moved(_parameters(t), f"#/$defs/{t.function.name}") for t in fitting}
    return dump(schema)


def _call_schema(tool: Tool) -> dict[str, object]:
    name = tool.function.name
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> Mapping[str, object]:
    return tool.function.parameters or {"type": "object"}


def _moved(schema: object, place: str) -> object:
    """A schema that stands at `place` of another one: what it says of its own root is said of that place."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value if key in _VALUES else f"{place}{value[1:]}" if _is_own(key, value) else _moved(value, place)
        for key, value in schema.items()
    }


def _is_own(key: str, value: object) -> bool:
    return key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
