"""The engine over a real tiny model: same ids and text as a plain greedy loop, stops, limits, cancellation."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch
from tests.conftest import make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llamafactory.config import load_config
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.engines.huggingface import HuggingFaceEngine, _max_concurrent
from llamafactory.models.starter import build_model
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer, build_renderer

ASK = Conversation((Message("user", "Who are you?"),), system="Be brief.")
GREEDY = GenerationOptions(do_sample=False, max_new_tokens=12, skip_special_tokens=False)


class Setup:
    """A tiny model, its tokenizer and renderer, and an engine over them."""

    def __init__(self, template: str = "chatml") -> None:
        self.tokenizer: PreTrainedTokenizerFast = make_tokenizer()
        self.renderer: Renderer = build_renderer(self.tokenizer, TemplateConfig(template=template))
        self.model: PreTrainedModel = build_model(self.tokenizer, hidden_size=32, num_layers=2, max_length=512).eval()

    def engine(self, max_concurrent: int = 1) -> HuggingFaceEngine:
        return HuggingFaceEngine(self.model, self.tokenizer, self.renderer, max_concurrent=max_concurrent)

    def answer(self, conversation: Conversation = ASK, options: GenerationOptions = GREEDY) -> list[Delta]:
        async def collect() -> list[Delta]:
            engine = self.engine()
            found = [delta async for delta in engine.generate(conversation, options)]
            await engine.close()
            return found

        return asyncio.run(collect())

    def make_it_say(self, tokens: list[int]) -> None:
        """Change the weights so that greedy decoding after any prompt says `tokens` in a circle.

        Embeddings of the wanted tokens are orthogonal, the layers add nothing, and the output row of each token is the
        embedding of its predecessor.
        """
        embedding = torch.zeros_like(self.model.get_input_embeddings().weight)
        head = torch.zeros_like(embedding)
        for place, token in enumerate(tokens):
            embedding[token, place] = 10.0
            head[tokens[(place + 1) % len(tokens)], place] = 10.0
        last = self.renderer.prompt_ids(ASK)[-1]
        assert last not in tokens
        embedding[last, len(tokens)] = 10.0
        head[tokens[0], len(tokens)] = 10.0
        self.model.config.tie_word_embeddings = False
        self.model.lm_head.weight = torch.nn.Parameter(head)
        self.model.get_input_embeddings().weight = torch.nn.Parameter(embedding)
        for layer in self.model.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()


@pytest.fixture
def setup() -> Setup:
    return Setup()


@torch.no_grad()
def plain_greedy(setup: Setup, count: int) -> list[int]:
    ids = setup.renderer.prompt_ids(ASK)
    made: list[int] = []
    while len(made) < count:
        token = int(setup.model(torch.tensor([ids + made])).logits[0, -1].argmax())
        made.append(token)
        if token in setup.renderer.stop_ids:
            break
    return made


@pytest.mark.parametrize("template", ["chatml", "llama3", "default"])
def test_prompt_ids_are_those_the_training_renderer_puts_before_the_answer(template: str) -> None:
    setup = Setup(template)
    conversation = replace(ASK, messages=(*ASK.messages, Message("assistant", "x"), Message("user", "And now?")))
    trained = replace(conversation, messages=(*conversation.messages, Message("assistant", "I am here.")))
    turns = setup.renderer.render(trained)
    before = [token for piece in turns[-1].source for token in piece.ids]
    earlier = [token for turn in turns[:-1] for piece in (*turn.source, *turn.target) for token in piece.ids]
    assert setup.engine().prompt_ids(conversation) == earlier + before


def test_greedy_text_equals_a_plain_argmax_loop(setup: Setup) -> None:
    deltas = setup.answer()
    expected = plain_greedy(setup, 12)
    shown = [token for token in expected if token not in setup.renderer.stop_ids]
    assert "".join(delta.text for delta in deltas) == setup.tokenizer.decode(shown)
    assert deltas[-1].completion_tokens == len(expected)
    assert deltas[-1].prompt_tokens == len(setup.renderer.prompt_ids(ASK))
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


def test_temperature_zero_is_greedy(setup: Setup) -> None:
    text = "".join(delta.text for delta in setup.answer())
    assert "".join(delta.text for delta in setup.answer(options=replace(GREEDY, do_sample=True, temperature=0))) == text


def test_a_stop_token_ends_with_stop_and_is_not_shown(setup: Setup) -> None:
    hello, world = setup.tokenizer.encode("hi you", add_special_tokens=False)[:2]
    setup.make_it_say([hello, world, setup.renderer.stop_ids[0]])
    deltas = setup.answer()
    assert "".join(delta.text for delta in deltas) == setup.tokenizer.decode([hello, world])
    assert (deltas[-1].finish_reason, deltas[-1].completion_tokens) == ("stop", 3)


@pytest.mark.parametrize("number", range(2))
def test_every_stop_id_of_the_template_stops(number: int) -> None:
    setup = Setup("llama3")
    assert len(setup.renderer.stop_ids) >= 2
    word = setup.tokenizer.encode("a", add_special_tokens=False)[0]
    setup.make_it_say([word, setup.renderer.stop_ids[number]])
    assert setup.answer()[-1] == Delta("", "stop", len(setup.renderer.prompt_ids(ASK)), 2)


def test_the_limit_ends_with_length(setup: Setup) -> None:
    word = setup.tokenizer.encode("a", add_special_tokens=False)[0]
    setup.make_it_say([word])
    deltas = setup.answer(options=replace(GREEDY, max_new_tokens=5))
    assert ("".join(delta.text for delta in deltas), deltas[-1].finish_reason) == ("aaaaa", "length")


def test_a_stop_text_across_tokens_ends_the_answer(setup: Setup) -> None:
    ids = [setup.tokenizer.encode(char, add_special_tokens=False)[0] for char in "abc"]
    setup.make_it_say(ids)
    deltas = setup.answer(options=replace(GREEDY, stop=("ca",), max_new_tokens=400))
    assert ("".join(delta.text for delta in deltas), deltas[-1].finish_reason) == ("ab", "stop")
    assert deltas[-1].completion_tokens == 4


def test_half_characters_are_never_shown(setup: Setup) -> None:
    ids = setup.tokenizer.encode("ß", add_special_tokens=False)
    assert len(ids) == 2
    setup.make_it_say(ids)
    deltas = setup.answer(options=replace(GREEDY, max_new_tokens=6))
    assert [delta.text for delta in deltas if delta.text] == ["ß", "ß", "ß"]


def test_max_length_counts_the_prompt(setup: Setup) -> None:
    setup.make_it_say([setup.tokenizer.encode("a", add_special_tokens=False)[0]])
    prompt = len(setup.renderer.prompt_ids(ASK))
    options = replace(GREEDY, max_new_tokens=0, max_length=prompt + 3)
    assert setup.answer(options=options)[-1].completion_tokens == 3
    with pytest.raises(ModelError, match=f"prompt has {prompt} tokens .* max_length: {prompt}"):
        setup.answer(options=replace(options, max_length=prompt))


def test_a_prompt_longer_than_the_model_is_an_error(setup: Setup) -> None:
    with pytest.raises(ModelError, match=r"no room for an answer \(model: 512"):
        setup.answer(Conversation((Message("user", "word " * 600),)))


def test_the_answer_ends_at_the_models_length(setup: Setup) -> None:
    setup.make_it_say([setup.tokenizer.encode("a", add_special_tokens=False)[0]])
    last = setup.answer(options=replace(GREEDY, max_new_tokens=9999))[-1]
    assert last.prompt_tokens + last.completion_tokens == 512


def test_a_seed_repeats_the_answer_and_leaves_the_random_state_alone(setup: Setup) -> None:
    options = GenerationOptions(max_new_tokens=12, temperature=1.5, top_p=1.0, top_k=0, seed=7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    texts = ["".join(delta.text for delta in setup.answer(options=options)) for _ in range(2)]
    other = "".join(delta.text for delta in setup.answer(options=replace(options, seed=8)))
    assert texts[0] == texts[1] != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_repetition_penalty_changes_the_answer(setup: Setup) -> None:
    first, second = (setup.tokenizer.encode(char, add_special_tokens=False)[0] for char in "ab")
    setup.make_it_say([first])
    setup.model.lm_head.weight.data[second, 0] = 9.0
    plain, changed = (
        "".join(
            delta.text for delta in setup.answer(options=replace(GREEDY, max_new_tokens=2, repetition_penalty=value))
        )
        for value in (1.0, 2.0)
    )
    assert (plain, changed) == ("aa", "ab")


def test_beams_give_one_piece(setup: Setup) -> None:
    deltas = setup.answer(options=replace(GREEDY, num_beams=2))
    assert deltas[-1].finish_reason in ("stop", "length")
    assert deltas[-1].completion_tokens > 0


def test_the_models_own_sampling_defaults_do_not_leak_in(setup: Setup) -> None:
    text = "".join(delta.text for delta in setup.answer())
    setup.model.generation_config.repetition_penalty = 50.0
    setup.model.generation_config.suppress_tokens = [5, 6, 7]
    assert "".join(delta.text for delta in setup.answer()) == text


def test_leaving_a_stream_stops_the_work_and_frees_the_place(setup: Setup) -> None:
    setup.make_it_say([setup.tokenizer.encode("a", add_special_tokens=False)[0]])
    endless = replace(GREEDY, max_new_tokens=450)

    async def scenario() -> float:
        engine = setup.engine()
        async with aclosing(engine.generate(ASK, endless)) as deltas:
            async for _ in deltas:
                break
        start = time.monotonic()
        found = [delta async for delta in engine.generate(ASK, replace(GREEDY, max_new_tokens=1))]
        assert found[-1].completion_tokens == 1
        await engine.close()
        return time.monotonic() - start

    assert asyncio.run(scenario()) < 1


def test_one_place_serves_in_turn_and_two_places_side_by_side(setup: Setup) -> None:
    async def together(max_concurrent: int) -> list[str]:
        engine = setup.engine(max_concurrent)

        async def one(text: str) -> str:
            conversation = Conversation((Message("user", text),))
            return "".join([delta.text async for delta in engine.generate(conversation, GREEDY)])

        found = await asyncio.gather(*(one(text) for text in ("one", "two", "three")))
        await engine.close()
        return found

    assert asyncio.run(together(1)) == asyncio.run(together(2))


def test_an_error_inside_generate_reaches_the_caller(setup: Setup) -> None:
    setup.model.lm_head = torch.nn.Linear(31, 600)
    with pytest.raises(RuntimeError, match="shape"):
        setup.answer()


@pytest.mark.parametrize("value", ["0", "x", "-1"])
def test_max_concurrent_must_be_a_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT", value)
    with pytest.raises(ConfigError, match="MAX_CONCURRENT"):
        _max_concurrent(load_config({"model_name_or_path": "x", "template": "chatml"}, command="chat"))


def test_without_a_cache_every_token_is_computed_from_the_whole_text() -> None:
    setup = Setup()
    widths: list[int] = []
    embed = setup.model.get_input_embeddings()
    embed.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    cached = "".join(delta.text for delta in setup.answer())
    assert widths[-5:] == [1] * 5
    widths.clear()
    setup.model.config.use_cache = False
    assert "".join(delta.text for delta in setup.answer()) == cached
    assert widths == list(range(widths[0], widths[0] + len(widths)))
