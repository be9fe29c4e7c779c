"""Run the vllm engine for real, against the huggingface engine, on a tiny model built on the spot.

    python scripts/check_vllm.py

For an environment that has vLLM (on a machine without a GPU, its CPU build); that build needs another transformers than
the rest of the project is tested with, so it is no part of the test suite. Prints one line for each check and ends with
status 1 when one fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llamafactory.config import load_config
from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.engine import Engine, GenerationOptions, build_engine
from llamafactory.models.starter import build_model, build_tokenizer
from llamafactory.rendering.records import Conversation, Message

ASK = Conversation((Message("user", "Who are you?"),), system="Be brief.")
GREEDY = GenerationOptions(do_sample=False, max_new_tokens=12)
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}


def write_models(folder: Path) -> None:
    """Write a model of two layers with heads of 64, and an adapter that changes its answers."""
    tokenizer = build_tokenizer(["Who are you? I am a small model. Be brief."] * 50, vocab_size=400)
    tokenizer.save_pretrained(folder / "model")
    model = build_model(tokenizer, hidden_size=256, num_layers=2, max_length=512, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(std=0.1, generator=generator)
    model.save_pretrained(folder / "model")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3, generator=generator)
    adapted.save_pretrained(folder / "adapter")


def engine_of(folder: Path, **keys: object) -> Engine:
    """Build an engine as `chat` does."""
    base = {"model_name_or_path": str(folder / "model"), "template": "chatml", "infer_dtype": "float32"}
    return build_engine(load_config({**base, **keys}, command="chat"))


async def answer(engine: Engine, prompt: Conversation | str, options: GenerationOptions) -> str:
    return "".join([delta.text async for delta in engine.generate(prompt, options)])


async def reference(folder: Path, **keys: object) -> list[str]:
    """What the huggingface engine says: to a chat, to a plain text, and to a chat with a stop text."""
    engine = engine_of(folder, **keys)
    text = await answer(engine, ASK, GREEDY)
    found = [text, await answer(engine, "Who are", GREEDY), text[: text.index(text[4])]]
    await engine.close()
    return found


class Checks:
    """Counts and prints."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, holds: bool, remark: str = "") -> None:
        self.failed += not holds
        sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {name} {remark}\n")
        sys.stdout.flush()


async def compare(folder: Path, check: Checks, **keys: object) -> None:
    """vLLM's answers against the huggingface engine's, with and without an adapter."""
    name = "adapter" if keys else "model"
    expected = await reference(folder, **keys)
    engine = engine_of(
        folder, infer_backend="vllm", vllm_enforce_eager=True, vllm_maxlen=4096, vllm_gpu_util=0.1, **keys
    )
    found = await asyncio.gather(
        answer(engine, ASK, GREEDY),
        answer(engine, "Who are", GREEDY),
        answer(engine, ASK, replace(GREEDY, stop=(expected[0][4],))),
    )
    for kind, ours, theirs in zip(("chat", "plain text", "stop text"), expected, found, strict=True):
        check(f"{name}: {kind}", ours == theirs, repr(theirs))
    if not keys:
        await probe(engine, check)
    await engine.close()


async def probe(engine: Engine, check: Checks) -> None:
    """Streaming, log-probabilities, schemas, seeds, leaving early, and refusals."""
    deltas = [delta async for delta in engine.generate(ASK, replace(GREEDY, top_logprobs=2))]
    check("stream: several pieces, one end", len(deltas) > 3 and deltas[-1].finish_reason in ("stop", "length"))
    tokens = [token for delta in deltas for token in delta.logprobs]
    check("log-probabilities", bool(tokens) and all(token.top[0][1] == token.logprob for token in tokens))
    text = await answer(engine, ASK, replace(GREEDY, json_schema=json.dumps(SCHEMA), max_new_tokens=30))
    check("json_schema", json.loads(text) in ({"a": 1}, {"a": 22}), repr(text))
    random = GenerationOptions(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12, seed=5)
    check("seed", await answer(engine, ASK, random) == await answer(engine, ASK, random))
    async with aclosing(engine.generate(ASK, replace(GREEDY, max_new_tokens=400))) as stream:
        await anext(stream)
    check("leaving early", await answer(engine, ASK, replace(GREEDY, max_new_tokens=3)) != "")
    for name, options in (
        ("num_beams", replace(GREEDY, num_beams=2)),
        ("json_schema", replace(GREEDY, json_schema="{")),
    ):
        try:
            await answer(engine, ASK, options)
            check(f"refuses {name}", False)
        except ConfigError as error:
            check(f"refuses {name}", "\n" not in str(error), str(error))
    try:
        await answer(engine, "word " * 600, GREEDY)
        check("too long", False)
    except ModelError as error:
        check("too long", True, str(error))


def main() -> int:
    """Run all checks."""
    check = Checks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        asyncio.run(compare(folder, check))
        asyncio.run(compare(folder, check, adapter_name_or_path=str(folder / "adapter"), finetuning_type="lora"))
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
