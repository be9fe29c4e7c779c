"""The bodies of requests, in OpenAI's words and with a few of our own. A field nobody knows is an error.

Knows shapes and ranges, not what a server allows at most.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
JsonObject = dict[str, Any]
MAX_TOKENS = 2**31


class Strict(BaseModel):
    """A body or a part of one."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class MediaUrl(Strict):
    """url: a data URL; where the server allows it, a path below its media folder or an http(s) address."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: MediaUrl


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: MediaUrl


class AudioPart(Strict):
    type: Literal["audio_url"]
    audio_url: MediaUrl


class InputAudio(Strict):
    """data: base64."""

    data: str
    format: Literal["wav", "mp3", "mpeg", "ogg", "flac"]


class InputAudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | VideoPart | AudioPart | InputAudioPart, Field(discriminator="type")]


class CalledFunction(Strict):
    """name: what the model wrote, right or wrong. arguments: the JSON text of an object."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = "{}"


class CallMade(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Strict):
    """One turn. `developer` is `system`; `function` with a name is a tool's result, without one JSON calls.

    refusal, annotations, audio, function_call: what OpenAI's client sends back with an answer; they must be empty.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallMade] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class FunctionSchema(Strict):
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionSchema


class ChosenFunction(Strict):
    name: Name


class ToolChoice(Strict):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Strict):
    name: str
    description: str | None = None
    schema_: JsonObject = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Sampling(Strict):
    """What both kinds of text requests may say about how answers are made. What is left out is as the server was told.

    do_sample, top_k, repetition_penalty, skip_special_tokens: ours. user, metadata, ...: labels without a meaning here.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    do_sample: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    skip_special_tokens: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class ChatRequest(Sampling):
    """A chat to be continued."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(Sampling):
    """Plain texts to be continued. echo: the answer begins with the prompt."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ScoreRequest(Strict):
    """Texts for a reward model, read as they are. max_length: the longest in tokens."""

    model: str
    messages: Annotated[list[str], Field(min_length=1, max_length=256)]
    max_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
