"""The official client against a real server: every shape it reads is the shape we write."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from tests.api.servers_for_tests import ScriptedEngine, Served, make_renderer, serving
from tests.conftest import make_tokenizer

from llamafactory.api.settings import Settings
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.inference.grammar import GrammarCompiler
from llamafactory.rendering.renderer import build_renderer

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SCRIPT = {
    "call": f"Let me look.\n\n{CALL}",
    "two": f"{CALL}\n{SECOND}",
    "broken call": f"{CALL}\n<tool_call>\n{{oops",
    "think": "<think>\nHm, hm.\n</think>\n\nYes.",
    "think and call": f"<think>\nI need it.\n</think>\n\n{CALL}",
    "forced": '[{"name": "get_time", "arguments": {"zone": "é"}}]',
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    renderer = make_renderer("qwen3")
    with serving(ScriptedEngine(renderer, SCRIPT), Settings(key="secret", model_name="tiny")) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0)


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def last_asked(served: Served):
    return served.engine.asked[-1]


def streamed(client: openai.OpenAI, text: str, **more: object) -> dict[str, object]:
    """What the chunks of a stream add up to; checks what every chunk must have."""
    found: dict[str, object] = {"content": "", "reasoning_content": "", "calls": [], "finish": None, "role": None}
    calls: dict[int, dict[str, str]] = {}
    for chunk in client.chat.completions.create(**ask(text, stream=True, **more)):
        assert chunk.object == "chat.completion.chunk" and chunk.created > 1_700_000_000 and chunk.model == "tiny"
        for choice in chunk.choices:
            assert found["finish"] is None
            delta = choice.delta
            found["role"] = delta.role or found["role"]
            found["content"] += delta.content or ""
            found["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
            for part in delta.tool_calls or []:
                call = calls.setdefault(part.index, {"name": "", "arguments": ""})
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
            found["finish"] = choice.finish_reason
    return {**found, "calls": [(call["name"], call["arguments"]) for call in calls.values()]}


def whole(client: openai.OpenAI, text: str, **more: object) -> dict[str, object]:
    answer = client.chat.completions.create(**ask(text, **more))
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    message = choice.message
    return {
        "content": message.content or "",
        "reasoning_content": getattr(message, "reasoning_content", ""),
        "calls": [(call.function.name, call.function.arguments) for call in message.tool_calls or []],
        "finish": choice.finish_reason,
        "role": message.role,
    }


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "owner")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_model_with_an_owner_in_its_name() -> None:
    with serving(ScriptedEngine(), Settings(model_name="owner/model")) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("owner/model").id == "owner/model"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("Hello there"))
    assert answer.choices[0].message.content == "Hello there"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)
    assert answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there", {"content": "Hello there", "finish": "stop"}),
        ("call", {"content": "Let me look.", "finish": "tool_calls"}),
        ("two", {"content": "", "finish": "tool_calls"}),
        ("broken call", {"content": SCRIPT["broken call"], "finish": "stop", "calls": []}),
        ("think", {"content": "Yes.", "reasoning_content": "Hm, hm.", "finish": "stop"}),
        ("think and call", {"content": "", "reasoning_content": "I need it.", "finish": "tool_calls"}),
    ],
)
def test_streamed_answer_is_the_whole_one(client: openai.OpenAI, text: str, expected: dict[str, object]) -> None:
    found = whole(client, text, tools=TOOLS)
    assert streamed(client, text, tools=TOOLS) == found
    assert {key: found[key] for key in expected} == expected
    for _, arguments in found["calls"]:
        assert isinstance(json.loads(arguments), dict)


def test_calls_in_parallel_and_one_at_a_time(client: openai.OpenAI) -> None:
    assert [name for name, _ in whole(client, "two", tools=TOOLS)["calls"]] == ["get_weather", "get_time"]
    one = {"tools": TOOLS, "parallel_tool_calls": False}
    assert [name for name, _ in whole(client, "two", **one)["calls"]] == ["get_weather"]
    assert streamed(client, "two", **one) == whole(client, "two", **one)


def test_no_tool_is_offered_with_none(client: openai.OpenAI, served: Served) -> None:
    assert whole(client, "call", tools=TOOLS, tool_choice="none")["content"] == SCRIPT["call"]
    assert last_asked(served)[0].tools == ""
    assert whole(client, "call")["content"] == SCRIPT["call"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_forced_call(client: openai.OpenAI, served: Served, choice: object) -> None:
    found = whole(client, "forced", tools=TOOLS, tool_choice=choice)
    assert found == streamed(client, "forced", tools=TOOLS, tool_choice=choice)
    assert found["calls"] == [("get_time", '{"zone": "é"}')] and found["finish"] == "tool_calls"
    schema = json.loads(last_asked(served)[1].json_schema)
    names = [item["properties"]["name"]["const"] for item in schema["items"]["anyOf"]]
    assert names == (["get_weather", "get_time"] if choice == "required" else ["get_time"])
    assert schema.get("maxItems") == (None if choice == "required" else 1)


def test_tool_results_go_back(client: openai.OpenAI, served: Served) -> None:
    first = client.chat.completions.create(**ask("two", tools=TOOLS)).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"result {number}"}
        for number, call in enumerate(first.tool_calls)
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "two"},
        first.model_dump(),
        *results,
    ]
    client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    conversation = last_asked(served)[0]
    assert conversation.system == "Be brief."
    assert [message.role for message in conversation.messages] == ["user", "function", "observation", "observation"]
    text = served.engine.renderer.text(conversation, generation=True)
    assert CALL in text and "result 0" in text and "result 1" in text and '"name": "get_time"' in text


def history(text: str, *names: str) -> list[dict[str, object]]:
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    return [{"role": "user", "content": "u"}, {"role": "assistant", "content": text, "tool_calls": calls}]


def test_results_stand_in_the_order_of_their_calls(client: openai.OpenAI, served: Served) -> None:
    results = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ("c", "a", "b")]
    client.chat.completions.create(model="tiny", messages=[*history("", "a", "b", "c"), *results], tools=TOOLS)
    assert [message.content for message in last_asked(served)[0].messages[2:]] == ["of a", "of b", "of c"]


@pytest.mark.parametrize(
    "text", ['Like {"name": "x"} here. ', '<tool_call>\n{"name": "old", "arguments": {}}\n</tool_call>', "<tool_call> "]
)
def test_text_before_calls_may_look_like_calls(client: openai.OpenAI, served: Served, text: str) -> None:
    result = {"role": "tool", "tool_call_id": "no such tool", "content": "3"}
    client.chat.completions.create(model="tiny", messages=[*history(text, "no such tool"), result], tools=TOOLS)
    written = served.engine.renderer.text(last_asked(served)[0], generation=True)
    assert f'{text}\n<tool_call>\n{{"name": "no such tool"' in written or f"{text}<tool_call>" in written


def test_schemas_of_two_tools_may_define_the_same_name(client: openai.OpenAI, served: Served) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"of": {"$ref": "#/$defs/Item"}}, "required": ["of"],
            "additionalProperties": False, "$defs": {"Item": {"const": name}}}}}
        for name in ("first", "second")
    ]  # fmt: skip
    whole(client, "forced", tools=tools, tool_choice="required")
    schema = last_asked(served)[1].json_schema
    tokenizer = make_tokenizer()
    compiler = GrammarCompiler(tokenizer, served.engine.renderer.stop_ids)
    for name in ("first", "second"):
        for item, fits in ((name, True), ("first" if name == "second" else "second", False)):
            text = json.dumps([{"name": name, "arguments": {"of": item}}], separators=(",", ":"))
            matcher = compiler.compile(schema)._matcher
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert (matcher.try_consume_tokens(ids) == len(ids)) is fits


@pytest.mark.parametrize("stream", [False, True])
def test_answer_held_to_json_is_no_thought_where_the_prompt_opens_one(stream: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
    )
    engine = ScriptedEngine(build_renderer(tokenizer, TemplateConfig()), {**SCRIPT, "json": '{"a": 1}'})
    with serving(engine, Settings(model_name="tiny")) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        read = streamed if stream else whole
        assert read(client, "json", response_format={"type": "json_object"})["content"] == '{"a": 1}'
        assert read(client, "forced", tools=TOOLS, tool_choice="required")["calls"] == [("get_time", '{"zone": "é"}')]


def test_n_and_seed(client: openai.OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(**ask("Hi", n=3, seed=5))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == 7 and answer.usage.completion_tokens == 6
    assert sorted(options.seed for _, options in served.engine.asked[-3:]) == [5, 6, 7]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**ask("Hi you", n=3, stream=True)):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hi you"] * 3


def test_usage_comes_last_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ask("Hello", stream=True, stream_options={"include_usage": True})))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_logprobs(client: openai.OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(**ask("Hello", logprobs=True, top_logprobs=2))
    content = answer.choices[0].logprobs.content
    assert [(token.token, token.logprob) for token in content] == [("Hel", -0.5), ("lo", -0.5)]
    assert content[0].bytes == list(b"Hel") and content[0].top_logprobs[1].logprob == -9999
    tokens = []
    for chunk in client.chat.completions.create(**ask("Hello", logprobs=True, stream=True)):
        tokens += [t.token for c in chunk.choices if c.logprobs for t in c.logprobs.content]
    assert tokens == ["Hel", "lo"]
    assert last_asked(served)[1].top_logprobs == 0


def test_options_reach_the_engine(client: openai.OpenAI, served: Served) -> None:
    more = {"top_k": 7, "repetition_penalty": 1.2}
    client.chat.completions.create(
        **ask("Hi", temperature=0.5, top_p=0.9, stop="x", presence_penalty=0.5, frequency_penalty=-0.5),
        max_completion_tokens=9,
        extra_body=more,
    )
    options = last_asked(served)[1]
    assert (options.temperature, options.top_p, options.top_k, options.do_sample) == (0.5, 0.9, 7, True)
    assert (options.presence_penalty, options.frequency_penalty, options.repetition_penalty) == (0.5, -0.5, 1.2)
    assert (options.stop, options.max_new_tokens) == (("x",), 9)
    client.chat.completions.create(**ask("Hi", temperature=0, stop=["a", "b"]), max_tokens=3)
    options = last_asked(served)[1]
    assert (options.is_greedy, options.stop, options.max_new_tokens) == (True, ("a", "b"), 3)


def test_json_formats_reach_the_engine(client: openai.OpenAI, served: Served) -> None:
    client.chat.completions.create(**ask("{}", response_format={"type": "json_object"}))
    assert last_asked(served)[1].json_schema == "{}"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client.chat.completions.create(
        **ask("{}", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    )
    assert json.loads(last_asked(served)[1].json_schema) == schema


def test_completions(client: openai.OpenAI, served: Served) -> None:
    answer = client.completions.create(model="tiny", prompt=["ab", "Hello"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "HelloHello", "HelloHello"]
    assert answer.object == "text_completion" and answer.usage.prompt_tokens == 14
    assert last_asked(served)[0] == "Hello"
    answer = client.completions.create(model="tiny", prompt="Hello", logprobs=1)
    assert answer.choices[0].logprobs.text_offset == [0, 3]
    chunks = list(client.completions.create(model="tiny", prompt="Hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]


def test_model_without_scores_answers_405(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="Not allowed") as caught:
        client.post("/score/evaluation", body={"model": "tiny", "messages": ["a"]}, cast_to=object)
    assert caught.value.status_code == 405


def test_reward_model_scores() -> None:
    with serving(ScriptedEngine(), gives="scores") as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        answer = client.post("/score/evaluation", body={"model": "rm", "messages": ["a", "bcd"]}, cast_to=object)
        assert answer["id"].startswith("scoreval-")
        assert {key: answer[key] for key in ("object", "model", "scores")} == {
            "object": "score.evaluation", "model": "rm", "scores": [1.0, 3.0],
        }  # fmt: skip
        with pytest.raises(openai.APIStatusError, match="Not allowed"):
            client.chat.completions.create(**ask("Hi"))


def test_wrong_key(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="secreT", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="Invalid API key"):
        client.models.list()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"colour": "red"}, "colour: this server knows no such field"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: missing"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "the last one must"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "message 2 of 2 has role 'user'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "before all others"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]},
            "only for the role",
        ),
        ({"temperature": 3}, "temperature: "),
        ({"n": 9}, "n: got 9, at most 8"),
        ({"max_tokens": 40000}, "at most 32768 tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "say the same and differ"),
        ({"top_logprobs": 3}, "unless logprobs is true"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "unless stream is true"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "'f' is none of the tools"),
        ({"tools": TOOLS * 2}, "the same name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": "x"}}}]},
            "properties: must",
        ),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "cannot be a tool call"),
        ({"messages": [{"role": "user", "content": "too long"}]}, "leaves no room for an answer"),
        ({"messages": [{"role": "user", "content": "x" * 1_000_001}]}, "at most 1000000"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_told(client: openai.OpenAI, change: dict[str, object], fact: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={**ask("a", stream=stream), **change}, cast_to=object)
    assert fact in caught.value.body["message"]
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_a_dead_engine_is_no_fault_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=0).chat.completions.create(**ask("dead"))
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "1"
    assert caught.value.body["type"] == "server_error" and caught.value.body["code"] == "engine_failure"


def test_log_probabilities_of_a_prompt_are_not_invented(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="leave out echo"):
        client.completions.create(model="any", prompt="a", echo=True, logprobs=1)


def test_bug_is_a_500_without_its_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**ask("broken"))
    assert "secret" not in str(caught.value.body)


def test_template_of_a_model_cannot_run_away() -> None:
    """A chat template that came with a model and misbehaves for one word of a user is stopped; the server goes on."""
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        f"{turns}{{% if 'boom' in messages[0].content %}}{loop}{{% endif %}}"
        f"{{% if 'escape' in messages[0].content %}}{escape}{{% endif %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with serving(ScriptedEngine(build_renderer(tokenizer, TemplateConfig()))) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        for text in ("boom", "escape"):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**ask(text))
            assert caught.value.body["message"].startswith("template: ")
        assert client.chat.completions.create(**ask("Hi")).choices[0].message.content == "Hi"
