"""Reasoning modes: which thoughts stay, where an empty one stands, and whether it is learnt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.records import Conversation, Message, Preference
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.thinking import ThinkingMode, split_thought

Build = Callable[..., Renderer]
WORDS = ("<think>\n", "\n</think>\n\n")
EMPTY = "<think>\n\n</think>\n\n"
TALK = Conversation(
    (
        Message("user", "q1"),
        Message("assistant", "<think>\nt1\n</think>\n\na1"),
        Message("user", "q2"),
        Message("assistant", "a2"),
    )
)


def sides(renderer: Renderer, turns: list[object]) -> list[tuple[str, str]]:
    def spell(pieces: object) -> str:
        tokens = [renderer.encoder.token_text(token) for piece in pieces for token in piece.ids]  # type: ignore[attr-defined]
        return "".join(tokens).replace("Ċ", "\n").replace("Ġ", " ")

    return [(spell(turn.source), spell(turn.target)) for turn in turns]  # type: ignore[attr-defined]


def learnt(turns: list[object]) -> list[int]:
    return [token for turn in turns for piece in (*turn.source, *turn.target) if piece.weight for token in piece.ids]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("enable", "first", "second"),
    [
        (True, ("assistant\n", "<think>\nt1\n</think>\n\na1"), ("assistant\n", EMPTY + "a2")),
        (False, ("assistant\n" + EMPTY, "a1"), ("assistant\n" + EMPTY, "a2")),
        (None, ("assistant\n", "<think>\nt1\n</think>\n\na1"), ("assistant\n" + EMPTY, "a2")),
    ],
)
def test_thoughts_in_training(
    enable: bool | None, first: tuple[str, str], second: tuple[str, str], render_with: Build
) -> None:
    renderer = render_with("qwen3", enable_thinking=enable)
    found = sides(renderer, renderer.render(TALK))
    for (source, target), (ending, beginning) in zip(found, (first, second), strict=True):
        assert source.endswith(ending)
        assert target.startswith(beginning + "<|im_end|>")


def test_earlier_thoughts_go_when_earlier_answers_are_masked(render_with: Build) -> None:
    first, second = sides(render_with("qwen3"), render_with("qwen3").render(TALK, mask_history=True))
    assert first[1].startswith("a1<|im_end|>")
    assert second[1].startswith(EMPTY + "a2")
    kept = render_with("qwen3", preserve_thinking=True)
    assert sides(kept, kept.render(TALK, mask_history=True))[0][1].startswith("<think>\nt1")


@pytest.mark.parametrize(
    ("enable", "ending"), [(True, "assistant\n"), (False, "assistant\n" + EMPTY), (None, "assistant\n" + EMPTY)]
)
def test_prompts_open_an_empty_thought_only_without_thinking(
    enable: bool | None, ending: str, render_with: Build
) -> None:
    prompt = Conversation(TALK.messages[:3])
    text = render_with("qwen3", enable_thinking=enable).text(prompt, generation=True)
    assert text.endswith("<|im_start|>" + ending)
    assert "t1" not in text
    assert "t1" in render_with("qwen3", enable_thinking=enable, preserve_thinking=True).text(prompt, generation=True)


def test_an_empty_thought_is_learnt_in_answers_and_never_in_prompts(render_with: Build) -> None:
    conversation = Conversation((Message("user", "q"), Message("assistant", "a")))
    for enable, expected in ((True, True), (False, False), (None, False)):
        renderer = render_with("qwen3", enable_thinking=enable)
        turns = renderer.render(conversation)
        assert (renderer.encoder.find_token("<think>") in learnt(turns)) is expected


def test_both_answers_of_a_preference_fit_the_one_prompt(render_with: Build) -> None:
    prompt = Conversation((Message("user", "q"),))
    with_thought, without = Message("assistant", "<think>\nt\n</think>\n\na"), Message("assistant", "b")
    renderer = render_with("qwen3", enable_thinking=None)
    better, worse = sides(renderer, renderer.encode([Preference(prompt, with_thought, without)])[0])
    assert better[0] == worse[0]
    assert better[0].endswith("assistant\n")
    assert worse[1].startswith(EMPTY + "b")
    better, worse = sides(renderer, renderer.encode([Preference(prompt, without, with_thought)])[0])
    assert better[0].endswith(EMPTY)
    assert worse[1].startswith("<think>\nt")


def test_other_templates_leave_thoughts_alone(render_with: Build) -> None:
    renderer = render_with("qwen3_nothink", enable_thinking=False)
    assert sides(renderer, renderer.render(TALK))[0][1].startswith("<think>\nt1")
    assert EMPTY not in renderer.text(TALK)


@pytest.mark.parametrize(
    ("content", "thought", "rest", "marked"),
    [
        ("<think>\nt\n</think>\n\na", "<think>\nt\n</think>", "a", True),
        ("<think></think>a", "<think></think>", "a", True),
        ("\n<think>t</think>\na", "\n<think>t</think>", "a", True),
        ("a", "", "a", False),
        ("see <think>t</think>", "", "see <think>t</think>", True),
        ("<think>never closed", "", "<think>never closed", True),
        ("closed</think>a", "", "closed</think>a", True),
    ],
)
def test_a_thought_is_found_at_the_start_alone(content: str, thought: str, rest: str, marked: bool) -> None:
    answer = split_thought(content, WORDS)
    assert ("".join(answer.lead), answer.bare, answer.marked) == (thought, rest, marked)
    assert "".join(answer.lead) + answer.text == content


def test_a_user_who_types_a_thought_word_types_text(render_with: Build) -> None:
    renderer = render_with("llama3")
    text = "<think>\nx\n</think>\n\ny"
    source = renderer.render(Conversation((Message("user", text), Message("assistant", "a"))))[0].source
    assert len([piece for piece in source if not piece.control]) == 1


def test_the_rules_by_themselves() -> None:
    mode = ThinkingMode(enable=None)
    assert mode.rule(last=True, single_turn=True, mask_history=False).empty == "prompt"
    assert mode.rule(last=False, single_turn=True, mask_history=False).drop
    assert not ThinkingMode(preserve=True).rule(last=False, single_turn=True, mask_history=False).drop
