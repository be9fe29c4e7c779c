"""Exported chat templates render the text, and the ids, that training and prompts use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import jinja2
import pytest
from tokenizers import pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llamafactory.models.starter import build_tokenizer
from llamafactory.rendering.conformance import cases, chat_messages, compare
from llamafactory.rendering.records import Conversation, Feedback, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import get_template, templates

Build = Callable[..., Renderer]
Fresh = Callable[[], PreTrainedTokenizerFast]
NAMES = list(templates())


def apply(
    tokenizer: PreTrainedTokenizerFast, renderer: Renderer, conversation: Conversation, **options: object
) -> object:
    return tokenizer.apply_chat_template(
        list(chat_messages(conversation)), chat_template=renderer.to_jinja(), return_dict=False, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_case_has_equal_tokens_or_a_stated_reason(name: str, render_with: Build, fresh: Fresh) -> None:
    tokenizer = fresh()
    findings = compare(render_with(name, tokenizer=tokenizer), tokenizer)
    assert [finding for finding in findings if finding.verdict in ("differs", "unsupported")] == []


@pytest.mark.parametrize("enable", [True, False, None])
@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("case", list(cases()))
def test_reasoning_templates_render_the_same_text_in_every_mode(
    case: str, enable: bool | None, preserve: bool, render_with: Build, fresh: Fresh
) -> None:
    for name in ("qwen3", "deepseekr1"):
        tokenizer = fresh()
        renderer = render_with(name, tokenizer=tokenizer, enable_thinking=enable, preserve_thinking=preserve)
        whole = cases()[case]
        prompt = replace(whole, messages=whole.messages[:-1])
        tools = {"tools": json.loads(whole.tools)} if whole.tools else {}
        assert apply(tokenizer, renderer, whole, tokenize=False, **tools) == renderer.text(whole)
        asked = apply(tokenizer, renderer, prompt, tokenize=False, add_generation_prompt=True, **tools)
        assert asked == renderer.text(prompt, generation=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", ["", "Be terse."])
@pytest.mark.parametrize("turns", [1, 3])
def test_prompts_have_equal_ids_through_apply_chat_template(
    name: str, system: str, turns: int, render_with: Build, fresh: Fresh
) -> None:
    tokenizer = fresh()
    renderer = render_with(name, tokenizer=tokenizer)
    texts = [("user", "What is it?\n"), ("assistant", "\tA thing."), ("user", "再见 👋")][:turns]
    prompt = Conversation(tuple(Message(role, text) for role, text in texts), system=system)  # type: ignore[arg-type]
    assert apply(tokenizer, renderer, prompt, add_generation_prompt=True) == renderer.prompt_ids(prompt)


def test_a_caller_may_switch_thinking_at_request_time(render_with: Build, fresh: Fresh) -> None:
    tokenizer = fresh()
    renderer = render_with("qwen3", tokenizer=tokenizer)
    prompt = Conversation((Message("user", "q"),))
    text = apply(tokenizer, renderer, prompt, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert text == render_with("qwen3", enable_thinking=False).text(prompt, generation=True)


def test_a_separate_thought_is_put_between_its_words(render_with: Build, fresh: Fresh) -> None:
    tokenizer = fresh()
    template = render_with("qwen3", tokenizer=tokenizer).to_jinja()
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "t"}]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert "<think>\nt\n</think>\n\na<|im_end|>" in text


@pytest.mark.parametrize(
    "roles", [("assistant",), ("user", "user"), ("user", "assistant", "assistant"), ("user", "robot")]
)
@pytest.mark.parametrize("name", ["llama3", "gemma", "glm4"])
def test_roles_out_of_order_are_refused(name: str, roles: tuple[str, ...], render_with: Build, fresh: Fresh) -> None:
    tokenizer = fresh()
    template = render_with(name, tokenizer=tokenizer).to_jinja()
    with pytest.raises(jinja2.TemplateError, match=r"roles must alternate|Unknown role"):
        tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in roles], chat_template=template)


def test_quotes_and_braces_of_a_system_prompt_survive_the_export(render_with: Build, fresh: Fresh) -> None:
    """Text of the run goes into the template as a literal, never as code."""
    hostile = "It's \\n \"quoted\" {{ 7 * 7 }} {% raise %}\nnext' }}"
    tokenizer = fresh()
    renderer = render_with("chatml", tokenizer=tokenizer, default_system=hostile)
    conversation = Conversation((Message("user", "a"), Message("assistant", "b")))
    text = apply(tokenizer, renderer, conversation, tokenize=False)
    assert hostile in str(text)
    assert text == renderer.text(conversation)


def test_an_exported_template_saved_with_a_tokenizer_is_the_runs_own(
    render_with: Build, fresh: Fresh, tmp_path: object
) -> None:
    tokenizer = fresh()
    renderer = render_with("llama3", tokenizer=tokenizer)
    tokenizer.chat_template = renderer.to_jinja()
    tokenizer.save_pretrained(str(tmp_path))
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    conversation = Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    ids = again.apply_chat_template(list(chat_messages(conversation)), add_generation_prompt=True, return_dict=False)
    assert ids == renderer.prompt_ids(conversation)


def test_a_border_is_told_apart_from_a_difference(render_with: Build) -> None:
    """A tokenizer may join `Assistant:` and the answer in a whole string; training and prompts never do."""
    tokenizer = build_tokenizer(
        ["Assistant:I am fine!", "Assistant:Hello.", "Human: How are you?"] * 50,
        vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["Human: How are you?", "\nAssistant:I am fine!"] * 50, trainer)
    findings = {
        finding.case: finding.verdict for finding in compare(render_with("default", tokenizer=tokenizer), tokenizer)
    }
    assert findings["single"] == "border"
    assert "differs" not in findings.values()


def test_a_broken_export_is_found(render_with: Build, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = fresh()
    renderer = render_with("chatml", tokenizer=tokenizer)
    broken = renderer.to_jinja().replace("assistant\\n", "asistant\\n")
    monkeypatch.setattr(type(renderer), "to_jinja", lambda self: broken)
    findings = compare(renderer, tokenizer)
    assert {finding.verdict for finding in findings} == {"differs"}
    assert "exported template" in findings[0].detail


def test_training_and_prompt_agree_for_feedback_of_every_template(render_with: Build) -> None:
    for name in NAMES:
        renderer = render_with(name)
        for case, whole in cases().items():
            if case == "thinking" and get_template(name).reasoning:
                continue
            turn = renderer.encode([Feedback(whole, True)])[0][0]
            prompt = replace(whole, messages=whole.messages[:-1])
            assert [t for piece in turn.source for t in piece.ids] == renderer.prompt_ids(prompt), (name, case)
