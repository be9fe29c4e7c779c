"""Engines built from configurations: adapters, reward models, and what each refuses."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.inference.engines_on_tiny_models import GREEDY, RENDERER, TOKENIZER, collect, stirred_model, text_of
from transformers import AutoModelForCausalLM

from llamafactory.config import load_config
from llamafactory.errors import DataError, ModelError
from llamafactory.inference.engine import Engine, GenerationOptions, build_engine
from llamafactory.models.value_head import attach_value_head, head_state, save_value_head
from llamafactory.rendering.records import Conversation, Message

ASK = Conversation((Message("user", "Who are you?"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters, and a reward model."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    model = stirred_model()
    for name in ("model", "reward"):
        TOKENIZER.save_pretrained(root / name)
        model.save_pretrained(root / name)
    for number in (1, 2):
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(root / "model"),
            LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.3)
        adapted.save_pretrained(root / f"adapter{number}")
    save_value_head(head_state(attach_value_head(model, trainable=False)), root / "reward")
    return root


def engine_of(path: Path, **keys: object) -> Engine:
    base = {"model_name_or_path": str(path), "template": "chatml"}
    return build_engine(load_config({**base, **keys}, command="chat"))


def answer(engine: Engine, options: GenerationOptions = GREEDY) -> str:
    async def run() -> str:
        found = await collect(engine, ASK, options)
        await engine.close()
        return text_of(found)

    return asyncio.run(run())


def test_adapters_are_merged_in_order(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for name in ("adapter1", "adapter2"):
        model = PeftModel.from_pretrained(model, str(folder / name)).merge_and_unload()
    ids = torch.tensor([RENDERER.prompt_ids(ASK)])
    stop = list(RENDERER.stop_ids)
    made = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0)
    adapters = [str(folder / "adapter1"), str(folder / "adapter2")]
    text = answer(engine_of(folder / "model", adapter_name_or_path=adapters))
    assert text == TOKENIZER.decode([token for token in made[0, ids.shape[1] :] if token not in stop])
    assert text != answer(engine_of(folder / "model"))


def test_a_reward_model_scores_texts_together_as_alone_and_from_many_callers(folder: Path) -> None:
    texts = ["Who are you?", "I am", "Name three colours. " * 8, "Red, green and blue."]

    async def run() -> tuple[list[float], list[float], list[list[float]]]:
        engine = engine_of(folder / "reward", stage="rm")
        together = await engine.score(texts)
        alone = [score for text in texts for score in await engine.score([text])]
        callers = await asyncio.gather(*(engine.score(texts) for _ in range(4)))
        await engine.close()
        return together, alone, callers

    together, alone, callers = asyncio.run(run())
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 4
    assert all(found == together for found in callers)


@torch.no_grad()
def test_a_score_is_the_heads_value_of_the_last_token_without_a_template(folder: Path) -> None:
    async def run() -> list[float]:
        engine = engine_of(folder / "reward", stage="rm")
        found = await engine.score(["Who are you?"])
        await engine.close()
        return found

    model = AutoModelForCausalLM.from_pretrained(folder / "reward").eval()
    ids = TOKENIZER("Who are you?", add_special_tokens=False, return_tensors="pt")["input_ids"]
    from safetensors.torch import load_file

    head = load_file(folder / "reward" / "value_head.safetensors")
    hidden = model.model(ids).last_hidden_state[0, -1]
    expected = hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
    assert asyncio.run(run()) == pytest.approx([float(expected)], abs=1e-5)


def test_refusals_of_either_kind_are_one_sentence(folder: Path) -> None:
    async def run() -> None:
        reward, model = engine_of(folder / "reward", stage="rm"), engine_of(folder / "model")
        with pytest.raises(ModelError, match="is a reward model, which gives scores and no answers"):
            await collect(reward, ASK, GREEDY)
        with pytest.raises(ModelError, match="gives answers and no scores: it has no value head"):
            await model.score(["a"])
        with pytest.raises(ModelError, match="text 2 has 4 tokens, max_length is 1; shorten it or raise max_length"):
            await reward.score(["a", "abcd"], max_length=1)
        with pytest.raises(DataError, match="text 1 is empty"):
            await reward.score([""])
        with pytest.raises(ModelError, match="positions for 512"):
            await reward.score(["a b " * 500])
        await reward.close()
        await model.close()
        with pytest.raises(ModelError, match="engine was closed"):
            await reward.score(["a"])
        with pytest.raises(ModelError, match="engine was closed"):
            await collect(model, ASK, GenerationOptions(num_beams=2))

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "generate"))]
