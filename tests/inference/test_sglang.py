"""The sglang engine against a stand-in for the foreign server: its arguments, its life, its stream."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tests.inference.engines_on_tiny_models import GREEDY, RENDERER, TOKENIZER, text_of
from transformers import AutoModelForCausalLM

from llamafactory.config import RunConfig, load_config
from llamafactory.errors import ConfigError, LlamaFactoryError, MissingPackageError, ModelError
from llamafactory.inference.engine import Delta, GenerationOptions, build_engine
from llamafactory.inference.engines import sglang
from llamafactory.inference.foreign import Source
from llamafactory.rendering.records import Conversation, Message

ASK = Conversation((Message("user", "Who are you?"),))
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in where Python finds the real package; returns the file it writes what it saw to."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "seen.jsonl"))
    return tmp_path / "seen.jsonl"


def seen(log: Path, key: str) -> list[object]:
    facts = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [fact[key] for fact in facts if key in fact]


def config_of(model_dir: Path, **keys: object) -> RunConfig:
    base = {"model_name_or_path": str(model_dir), "template": "chatml", "infer_backend": "sglang"}
    return load_config({**base, **keys}, command="chat")


def is_alive(pid: int) -> bool:
    """False for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int]) -> bool:
    """Wait for processes that were killed to leave the table."""
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


async def ask(config: RunConfig, prompts: list[Conversation | str], options: GenerationOptions) -> list[object]:
    engine = build_engine(config)

    async def one(prompt: Conversation | str) -> list[Delta]:
        return [delta async for delta in engine.generate(prompt, options)]

    try:
        return list(await asyncio.gather(*map(one, prompts), return_exceptions=True))
    finally:
        await engine.close()


def tokens_after(prompt: list[int], count: int) -> str:
    return TOKENIZER.decode([max(prompt[-1] - number, 5) for number in range(count)])


@pytest.mark.parametrize("disjoint", [False, True])
def test_it_asks_with_the_training_renderers_ids_and_streams_text(log: Path, model_dir: Path, disjoint: bool) -> None:
    keys = {"sglang_config": {"stream_output": True}} if disjoint else {}
    found = asyncio.run(ask(config_of(model_dir, **keys), [ASK, "Name three colours"], GREEDY))
    chat, plain = RENDERER.prompt_ids(ASK), TOKENIZER("Name three colours")["input_ids"]
    assert sorted(request["input_ids"] for request in seen(log, "request")) == sorted([chat, plain])
    assert [text_of(deltas) for deltas in found] == [tokens_after(chat, 12), tokens_after(plain, 12)]
    assert [deltas[-1].finish_reason for deltas in found] == ["length", "length"]
    assert len(found[0]) > 3


def test_closing_stops_the_server_and_what_it_started(log: Path, model_dir: Path) -> None:
    asyncio.run(ask(config_of(model_dir), [ASK], GREEDY))
    pids = [*seen(log, "pid"), *seen(log, "child")]
    assert len(pids) == 2
    assert all_gone(pids)


def test_leaving_closes_the_connection_and_stop_texts_do_the_same(log: Path, model_dir: Path) -> None:
    endless = TOKENIZER.decode([3]) + "Name"
    assert TOKENIZER(endless)["input_ids"][0] == 3

    async def run() -> list[Delta]:
        engine = build_engine(config_of(model_dir))
        async with aclosing(engine.generate(endless, GREEDY)) as stream:
            await anext(stream)
        text = tokens_after(TOKENIZER(endless)["input_ids"], 6)
        found = [delta async for delta in engine.generate(endless, replace(GREEDY, stop=(text[-2:],)))]
        for _ in range(200):
            if len(seen(log, "dropped")) == 2:
                break
            await asyncio.sleep(0.02)
        await engine.close()
        return found

    assert asyncio.run(run())[-1].finish_reason == "stop"
    assert seen(log, "dropped") == [True, True]


def test_errors_of_the_server_are_one_sentence_and_leave_the_others_alone(log: Path, model_dir: Path) -> None:
    prompts = [TOKENIZER.decode([1]) + "a", TOKENIZER.decode([2]) + "a", "Name"]
    refused, failed, fine = asyncio.run(ask(config_of(model_dir), list(prompts), GREEDY))
    assert isinstance(refused, ConfigError)
    assert "status 400 (this request is refused)" in str(refused)
    assert isinstance(failed, ModelError)
    assert "reports an error: out of memory" in str(failed)
    assert text_of(fine) == tokens_after(TOKENIZER("Name")["input_ids"], 12)


def test_log_probabilities_are_passed_on(log: Path, model_dir: Path) -> None:
    (deltas,) = asyncio.run(ask(config_of(model_dir), ["Name"], replace(GREEDY, top_logprobs=2)))
    tokens = [token for delta in deltas for token in delta.logprobs]
    assert len(tokens) == 12
    assert {(token.logprob, token.top[0][1], token.top[1]) for token in tokens} == {
        (-0.5, -0.5, (TOKENIZER.decode([9]), -1.5))
    }


def test_a_server_that_dies_is_told_with_its_last_line(
    log: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "1")
    with pytest.raises(
        ModelError, match=r"ended with status 3 .*; the last it said was: RuntimeError: no such kernel$"
    ):
        build_engine(config_of(model_dir))
    assert all_gone(seen(log, "child"))


def test_a_server_that_never_gets_ready_is_stopped(log: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_SLOW", "1")
    monkeypatch.setattr(sglang, "START_SECONDS", 1.0)
    with pytest.raises(ModelError, match="did not become ready within 1 seconds"):
        build_engine(config_of(model_dir))
    assert all_gone([*seen(log, "pid"), *seen(log, "child")])


def test_a_killed_server_ends_answers_with_a_sentence(log: Path, model_dir: Path) -> None:
    async def run() -> None:
        engine = build_engine(config_of(model_dir))
        stream = engine.generate(TOKENIZER.decode([3]) + "Name", GREEDY)
        await anext(stream)
        os.kill(seen(log, "pid")[0], 9)
        try:
            async for _ in stream:
                pass
        finally:
            await engine.close()

    with pytest.raises(ModelError, match="sglang server"):
        asyncio.run(run())


SOURCE = Source(Path("/m"), None, 512, "")


def test_the_command_line_carries_the_options() -> None:
    config = load_config(
        {
            "model_name_or_path": "m", "infer_backend": "sglang", "sglang_maxlen": 300, "sglang_mem_fraction": 0.5,
            "sglang_tp_size": 2, "sglang_lora_backend": "flashinfer", "infer_dtype": "bfloat16",
            "sglang_config": {"disable_cuda_graph": True, "log_level": "error", "stream_output": False},
        },
        command="chat",
    )  # fmt: skip
    words = " ".join(sglang.server_arguments(config, replace(SOURCE, adapter=Path("/a")), 300, 4000))
    assert words == (
        "-m sglang.launch_server --model-path /m --host 127.0.0.1 --port 4000 --context-length 300 --tp-size 2 "
        "--mem-fraction-static 0.5 --dtype bfloat16 --lora-paths adapter=/a --lora-backend flashinfer "
        "--disable-radix-cache --disable-cuda-graph --log-level error"
    )
    assert "--lora" not in " ".join(sglang.server_arguments(config, SOURCE, 300, 4000))


def test_a_request_carries_the_options() -> None:
    options = GenerationOptions(
        temperature=0.5, top_p=0.6, top_k=7, seed=3, presence_penalty=0.1, frequency_penalty=0.2, json_schema="{}"
    )
    body = sglang.request_body([5, 6], options, 9, (7,), has_adapter=True)
    assert body == {
        "input_ids": [5, 6], "stream": True, "lora_path": "adapter",
        "sampling_params": {
            "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.6, "top_k": 7, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "repetition_penalty": 1.0, "stop_token_ids": [7], "ignore_eos": False,
            "sampling_seed": 3, "json_schema": '{"type": "object"}',
        },
    }  # fmt: skip
    greedy = sglang.request_body([5], GREEDY, 9, (7,), has_adapter=False)["sampling_params"]
    assert (greedy["temperature"], greedy["top_k"], greedy["ignore_eos"]) == (0.0, -1, True)


def test_what_it_cannot_do_is_one_sentence(log: Path, model_dir: Path) -> None:
    (error,) = asyncio.run(ask(config_of(model_dir), [ASK], replace(GREEDY, num_beams=2)))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("num_beams: sglang has no beam search, got 2; set num_beams: 1")


def test_without_the_package_the_install_command_is_told(model_dir: Path) -> None:
    with pytest.raises(
        MissingPackageError, match=r"infer_backend: sglang needs the package 'sglang'.*pip install sglang"
    ):
        build_engine(config_of(model_dir))


@pytest.fixture(scope="module")
def adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    yield folder


def test_an_adapter_is_loaded_and_named_in_every_request(log: Path, model_dir: Path, adapter: Path) -> None:
    asyncio.run(ask(config_of(model_dir, adapter_name_or_path=str(adapter)), [ASK], GREEDY))
    assert f"adapter={adapter}" in seen(log, "arguments")[0]
    assert [request["lora_path"] for request in seen(log, "request")] == ["adapter"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "rm"}, "infer_backend: sglang runs models that answer and no reward models"),
        ({"adapter_name_or_path": ["A", "A"]}, "adapter_name_or_path: got 2 adapters and sglang takes one"),
        ({"adapter_name_or_path": ["A"], "finetuning_type": "oft"}, "finetuning_type: sglang reads LoRA adapters"),
        ({"add_tokens": ["<new>"], "resize_vocab": True}, "cannot add tokens, and <new> are not in the model's"),
    ],
)
def test_models_it_cannot_load_are_refused_before_it_starts(
    log: Path, model_dir: Path, adapter: Path, keys: dict[str, object], message: str
) -> None:
    if "adapter_name_or_path" in keys:
        keys = {**keys, "adapter_name_or_path": [str(adapter)] * len(keys["adapter_name_or_path"])}
    with pytest.raises(LlamaFactoryError, match=message):
        build_engine(config_of(model_dir, **keys))
    assert not log.exists()
