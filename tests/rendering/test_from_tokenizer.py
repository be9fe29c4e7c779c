"""Rendering with the tokenizer's own chat template: exact masks by rendering, or a clear error."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from llamafactory.errors import ConfigError, DataError
from llamafactory.rendering.conformance import cases, chat_messages
from llamafactory.rendering.records import Conversation, Message, Preference
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import get_template, templates
from llamafactory.rendering.tokens import Tokens, Turn, join

Build = Callable[..., Renderer]
Fresh = Callable[[], PreTrainedTokenizerFast]
CLOSED = [name for name, template in templates().items() if not template.efficient_eos]


def tokens(turns: list[Turn]) -> Tokens:
    return join(piece for turn in turns for piece in (*turn.source, *turn.target))


def talk(*texts: str, **fields: str) -> Conversation:
    return Conversation(
        tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)), **fields
    )


def in_words_of(name: str, conversation: Conversation) -> Conversation:
    """The conversation with the thought words of a template, which its export writes around the field of thoughts."""
    template = get_template(name)
    if not template.reasoning:
        return conversation
    opening, closing = template.thought_words
    messages = (
        replace(message, content=message.content.replace("<think>\n", opening).replace("\n</think>\n\n", closing))
        for message in conversation.messages
    )
    return replace(conversation, messages=tuple(messages))


def own(source: str, fresh: Fresh, render_with: Build, **options: object) -> tuple[PreTrainedTokenizerFast, Renderer]:
    tokenizer = fresh()
    tokenizer.chat_template = source
    return tokenizer, render_with(None, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("name", CLOSED)
def test_an_exported_template_gives_back_the_tokens_and_the_mask(name: str, render_with: Build, fresh: Fresh) -> None:
    tokenizer = fresh()
    built_in = render_with(name, tokenizer=tokenizer)
    tokenizer.chat_template = built_in.to_jinja()
    renderer = render_with(None, tokenizer=tokenizer)
    masked = get_template(name).reasoning  # its export drops earlier thoughts, as training with masked history does
    for case, conversation in cases().items():
        expected = tokens(built_in.render(in_words_of(name, conversation), mask_history=masked))
        assert tokens(renderer.render(conversation, mask_history=masked)) == expected, case
        prompt = replace(conversation, messages=conversation.messages[:-1])
        assert renderer.prompt_ids(prompt) == built_in.prompt_ids(in_words_of(name, prompt)), case
    assert set(renderer.stop_ids) <= set(built_in.stop_ids)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_ids_are_those_of_apply_chat_template(fresh: Fresh, render_with: Build) -> None:
    tokenizer, renderer = own(CHATML, fresh, render_with)
    conversation = talk("Hi\n", " Hello", "再见", "Bye", system="Be terse.")
    whole = tokenizer.apply_chat_template(list(chat_messages(conversation)), return_dict=False)
    assert tokens(renderer.render(conversation)).input_ids == whole
    labels = [label for label in tokens(renderer.render(conversation)).labels if label != -100]
    assert tokenizer.decode(labels) == " Hello<|im_end|>Bye<|im_end|>"
    assert renderer.stop_words == ("</s>", "<|im_end|>")


def test_message_text_stays_text_in_any_template(fresh: Fresh, render_with: Build) -> None:
    tokenizer, renderer = own(CHATML, fresh, render_with)
    turns = renderer.render(talk("<|im_end|>", "a<|im_end|>b", system="<|im_start|>"))
    ids = tokens(turns).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3


def test_a_template_that_trims_is_followed(fresh: Fresh, render_with: Build) -> None:
    source = CHATML.replace("m.content", "(m.content | trim)")
    tokenizer, renderer = own(source, fresh, render_with)
    conversation = talk("  Hi  ", "\nHello \n")
    whole = tokenizer.apply_chat_template(list(chat_messages(conversation)), return_dict=False)
    assert tokens(renderer.render(conversation)).input_ids == whole


def test_a_template_that_drops_earlier_thoughts_is_followed(fresh: Fresh, render_with: Build) -> None:
    source = CHATML.replace(
        "m.content",
        "(m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1].lstrip('\\n'))",
    )
    tokenizer, renderer = own(source, fresh, render_with)
    conversation = cases()["thinking"]
    whole = tokenizer.apply_chat_template(list(chat_messages(conversation)), return_dict=False)
    found = tokens(renderer.render(conversation))
    assert found.input_ids == whole
    learnt = tokenizer.decode([label for label in found.labels if label != -100])
    assert learnt == "a1<|im_end|><think>\ntwo\n</think>\n\na2<|im_end|>"


def test_an_opened_thought_belongs_to_the_prompt(fresh: Fresh, render_with: Build) -> None:
    """Qwen3 with thinking off: the generation prompt holds an empty thought, earlier answers do not."""
    source = CHATML.replace(
        "+ m.content +", "+ ('<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '') + m.content +"
    ).replace(
        "assistant\n' }}", "assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    )
    for enable, learnt in ((False, "x<|im_end|>y<|im_end|>"), (True, "x<|im_end|><think>\n\n</think>\n\ny<|im_end|>")):
        tokenizer, renderer = own(source, fresh, render_with, enable_thinking=enable)
        found = tokens(renderer.render(talk("a", "x", "b", "y")))
        assert tokenizer.decode([label for label in found.labels if label != -100]) == learnt
        text = renderer.text(talk("a", "x", "b"), generation=True)
        assert text.endswith("</think>\n\n") is (not enable)


def test_an_answer_without_a_stop_token_teaches_the_end_token(fresh: Fresh, render_with: Build) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer, renderer = own(source, fresh, render_with)
    found = tokens(renderer.render(talk("a", "x", "b", "y")))
    learnt = [label for label in found.labels if label != -100]
    assert learnt.count(tokenizer.eos_token_id) == 2
    assert found.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_preference_needs_one_prompt_for_both_answers(fresh: Fresh, render_with: Build) -> None:
    tokenizer, renderer = own(CHATML, fresh, render_with)
    better, worse = renderer.encode([Preference(talk("a"), Message("assistant", "x"), Message("assistant", "y"))])[0]
    assert better.source is worse.source
    assert tokenizer.decode([t for piece in worse.target for t in piece.ids]) == "y<|im_end|>\n"
    shouting = CHATML.replace("{% for m", "{{ messages[-1].content | length }}{% for m")
    with pytest.raises((DataError, ConfigError), match="name a built-in template"):
        own(shouting, fresh, render_with)[1].encode(
            [Preference(talk("a"), Message("assistant", "x"), Message("assistant", "yy"))]
        )


def test_tools_calls_and_results_go_to_the_template(fresh: Fresh, render_with: Build) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = render_with("qwen", tokenizer=tokenizer).to_jinja()
    renderer = render_with(None, tokenizer=tokenizer)
    found = tokens(renderer.render(cases()["tool calls"]))
    learnt = tokenizer.decode([label for label in found.labels if label != -100])
    assert learnt.startswith('<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京", "days": [1, 2]}}')
    assert [call.name for call in renderer.parse_tools('<tool_call>{"name": "f"}</tool_call>')] == ["f"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("options", "learnt"), [({}, 0), ({"train_on_prompt": True}, 1), ({"mask_history": True}, 0)])
def test_a_prompt_that_repeats_the_name_of_a_call_is_not_learnt_for_it(
    fresh: Fresh, render_with: Build, options: dict[str, bool], learnt: int
) -> None:
    source = (
        "{% set last = namespace(name='') %}{% for m in messages %}{% if m.tool_calls %}"
        "{% set last.name = m.tool_calls[0].function.name %}"
        "{{ '<|im_start|>assistant\n' + last.name + (m.tool_calls[0].function.arguments | tojson) + '<|im_end|>\n' }}"
        "{% elif m.role == 'tool' %}{{ '<|im_start|>functions.' + last.name + '\n' + m.content + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    _, renderer = own(source, fresh, render_with)
    call = Message("function", '{"name": "get_weather", "arguments": {"city": "Paris"}}')
    asked, result, done = Message("user", "q"), Message("observation", "3"), Message("assistant", "It is 3.")
    turns = renderer.render(Conversation((asked, call, result, done)), **options)
    assert {piece.weight for turn in turns for piece in turn.source if piece.ids} == {learnt}


def test_calls_that_a_template_leaves_out_are_an_error(fresh: Fresh, render_with: Build) -> None:
    _, renderer = own(CHATML.replace("m.content", "(m.content or '')"), fresh, render_with)
    with pytest.raises(DataError, match=r"leaves out a part of this conversation.*name a built-in template"):
        renderer.render(cases()["tool calls"])


def test_control_tokens_in_calls_are_refused_because_they_would_count(fresh: Fresh, render_with: Build) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = render_with("qwen", tokenizer=tokenizer).to_jinja()
    call = Message("function", '{"name": "f", "arguments": {"a": "<|im_end|>"}}')
    with pytest.raises(DataError, match=r"t\.json:2: tools, tool calls or reshaped messages spell a control token"):
        render_with(None, tokenizer=tokenizer).render(Conversation((Message("user", "go"), call), source="t.json:2"))


def test_a_template_whose_prompt_is_not_how_answers_begin_is_refused(fresh: Fresh, render_with: Build) -> None:
    source = "{% if add_generation_prompt %}{{ 'PROMPT' }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"the prompt it writes for an answer.*name a built-in template"):
        own(source, fresh, render_with)


def test_a_refusal_of_the_template_names_the_row(fresh: Fresh, render_with: Build) -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    _, renderer = own(source, fresh, render_with)
    with pytest.raises(DataError, match=r"t\.json:4: .*refuses this conversation \(no system role\).*template: \.\.\."):
        renderer.render(talk("a", "b", system="s", source="t.json:4"))


def test_a_hostile_template_ends_the_run_with_an_error(fresh: Fresh, render_with: Build) -> None:
    with pytest.raises(ConfigError, match="chat template cannot be used"):
        own("{% for a in range(9**9) %}{% endfor %}", fresh, render_with)


def test_several_templates_need_a_choice(fresh: Fresh, render_with: Build) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML}
    with pytest.raises(ConfigError, match="several chat templates"):
        render_with(None, tokenizer=tokenizer)


def test_the_date_a_template_asks_for_is_the_options(fresh: Fresh, render_with: Build) -> None:
    _, renderer = own("{{ strftime_now('%d %b %Y') }}" + CHATML, fresh, render_with, template_date="2025-01-15")
    assert renderer.text(talk("a", "b")).startswith("15 Jan 2025<|im_start|>")


def test_it_can_be_sent_to_another_process_and_exports_itself(fresh: Fresh, render_with: Build) -> None:
    _, renderer = own(CHATML, fresh, render_with)
    again = pickle.loads(pickle.dumps(renderer))
    assert again.render(talk("a", "b")) == renderer.render(talk("a", "b"))
    assert again.to_jinja() == CHATML
    assert renderer.name == "tokenizer"


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3", "gemma3", "glm4moe", "phi3", "deepseekv3", "gptoss"])
def test_vendors_own_templates_render_to_the_ids_of_transformers(name: str, fresh: Fresh, render_with: Build) -> None:
    trl = pytest.importorskip("trl", reason="holds vendors' chat templates")
    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer, renderer = own(source, fresh, render_with, template_date="2025-01-15")
    conversation = talk("Hi", "Hello there.", "1+1?", "2")
    turns = renderer.render(conversation)
    assert len(turns) == 2
    if "strftime_now" not in source:
        options = {"enable_thinking": True} if "enable_thinking" in source else {}
        text = tokenizer.apply_chat_template(list(chat_messages(conversation)), tokenize=False, **options)
        assert renderer.text(conversation).removesuffix("</s>") == text.removesuffix("</s>")
    for turn, answer in zip(turns, ("Hello there.", "2"), strict=True):
        learnt = tokenizer.decode([t for piece in turn.target if piece.weight for t in piece.ids])
        assert answer in learnt
        assert "Hi" not in learnt


def vendors_own(name: str, fresh: Fresh, render_with: Build, **options: object) -> Renderer:
    trl = pytest.importorskip("trl", reason="holds vendors' chat templates")
    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = fresh()
    tokenizer.chat_template = source
    ends = ("<|call|>", "<|return|>", "<|eot|>", "<|eom|>", "<turn|>")
    tokenizer.add_tokens([AddedToken(end, special=True, normalized=False) for end in ends])
    return render_with(None, tokenizer=tokenizer, **options)


def learnt_text(renderer: Renderer, turn: Turn) -> str:
    return "".join(
        renderer.encoder._backend.decode(list(piece.ids), skip_special_tokens=False)
        for piece in turn.target
        if piece.weight
    )


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        (
            "gptoss",
            "<|channel|>analysis<|message|>two <b><|end|><|start|>assistant<|channel|>final<|message|>a2<|return|>",
        ),
        ("gemma4_v5", "<|channel>thought\ntwo <b>\n<channel|>a2<turn|>"),
        ("qwen3_8", "two <b>\n</think>\n\na2<|im_end|>"),
        ("lfm2_2_5", "<think>two <b></think>a2<|im_end|>"),
        ("muse_glimmer", " to=self<|message|>two <b><|eom|><|start|>assistant to=user<|message|>a2<|eot|>"),
    ],
)
def test_a_thought_goes_into_the_field_the_template_reads(
    name: str, learnt: str, fresh: Fresh, render_with: Build
) -> None:
    renderer = vendors_own(name, fresh, render_with)
    answer = Message("assistant", "<think>\ntwo <b>\n</think>\n\na2", loss=0.5)
    conversation = Conversation((*talk("q1", "<think>one</think>a1", "q2").messages, answer))
    first, last = renderer.render(conversation)
    assert learnt_text(renderer, last).removesuffix("\n") == learnt
    assert {piece.weight for piece in last.target if piece.weight} == {0.5}
    assert "one" in learnt_text(renderer, first) or name != "qwen3_8"
    assert renderer.note(conversation) == ""


def test_a_thought_before_calls_goes_into_the_field_too(fresh: Fresh, render_with: Build) -> None:
    renderer = vendors_own("gptoss", fresh, render_with)
    call = Message("function", '<think>\nhm\n</think>\n\n{"name": "f", "arguments": {"a": "x"}}')
    result = Message("observation", '{"temp": "mild"}')
    asked = Message("user", "q")
    [turn] = renderer.render(Conversation((asked, call)))
    written = ' to=functions.f<|channel|>commentary json<|message|>{"a": "x"}<|call|>'
    assert learnt_text(renderer, turn) == f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant{written}"
    called, answered = renderer.render(Conversation((asked, call, result, Message("assistant", "Mild."))))
    assert learnt_text(renderer, called) == written
    assert learnt_text(renderer, answered) == "<|channel|>final<|message|>Mild.<|return|>"
    prompt = renderer.text(Conversation((asked, call, result)), generation=True)
    assert prompt.endswith('<|message|>"{\\"temp\\": \\"mild\\"}"<|end|><|start|>assistant')


def test_thoughts_that_stay_in_the_text_are_told(fresh: Fresh, render_with: Build) -> None:
    _, renderer = own(CHATML, fresh, render_with)
    conversation = talk("q", "<think>\nt\n</think>\n\na")
    assert "<think>\nt\n</think>" in learnt_text(renderer, renderer.render(conversation)[0])
    assert "knows no field for thoughts" in renderer.note(conversation)
    assert renderer.note(talk("q", "a")) == ""
    aware = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    assert own(aware, fresh, render_with)[1].note(conversation) == ""


def test_a_control_token_in_a_thought_before_calls_is_no_control_token(fresh: Fresh, render_with: Build) -> None:
    tokenizer = fresh()
    tokenizer.chat_template = render_with("qwen", tokenizer=tokenizer).to_jinja()
    call = Message("function", '<think><|im_end|></think>{"name": "f", "arguments": {}}')
    with pytest.raises(DataError, match="spell a control token"):
        render_with(None, tokenizer=tokenizer).render(Conversation((Message("user", "go"), call)))
