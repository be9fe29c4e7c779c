"""Answers from vLLM, in this process (its workers are processes of their own).

Prompts and texts are those of the other engines: vLLM gets token ids and gives token ids. Knows options and vLLM's
arguments; the package is imported when the engine is built.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llamafactory.errors import ConfigError, ModelError, did_you_mean, first_line
from llamafactory.inference.alone import closed_error
from llamafactory.inference.answer_text import AnswerText, room_for_answer
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.foreign import Source, find_source, no_scores, refuse_options
from llamafactory.inference.grammar import parse_schema
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.sampling import Token
from llamafactory.parts import require
from llamafactory.rendering.records import Conversation

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from llamafactory.config import RunConfig


def build(config: RunConfig) -> VllmEngine:
    """Start vLLM over the model and the adapter that `config` names."""
    require("vllm", "infer_backend: vllm", install="vllm")
    bundle, renderer = load_renderer(config)
    source = find_source(config, bundle)
    arguments = engine_arguments(config, source)
    return VllmEngine(_start(arguments), AnswerText(bundle.tokenizer, renderer), source, arguments["max_model_len"])


class VllmEngine:
    """vLLM behind the engine protocol; it batches by itself."""

    def __init__(self, llm: AsyncLLM, texts: AnswerText, source: Source, max_length: int) -> None:
        self.renderer = texts.renderer
        self._llm: AsyncLLM | None = llm
        self._texts = texts
        self._max_length = max_length
        self._numbers = itertools.count()
        self._adapter = _adapter_request(source.adapter)

    async def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Engine.generate`."""
        refuse_options(options, "vllm")
        ids = self._texts.prompt_ids(prompt)
        room = room_for_answer(options, len(ids), self._max_length)
        sampling = sampling_arguments(options, room, self._texts.stop_ids)
        async with (
            aclosing(self._tokens(ids, sampling)) as tokens,
            aclosing(self._texts.deltas(tokens, len(ids), options)) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        """vLLM runs models that answer only; see `Engine.score`."""
        raise no_scores("vllm")

    async def close(self) -> None:
        """Stop running answers and end vLLM's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    async def _tokens(self, prompt: list[int], sampling: dict[str, Any]) -> AsyncGenerator[Token, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if self._llm is None:
            raise closed_error()
        schema = sampling.pop("json_schema", "")
        try:
            structure = StructuredOutputsParams(json=schema, disable_any_whitespace=True) if schema else None
            parameters = SamplingParams(
                **sampling, output_kind=RequestOutputKind.DELTA, detokenize=False, structured_outputs=structure
            )
            outputs = self._llm.generate(
                {"prompt_token_ids": prompt}, parameters, f"answer-{next(self._numbers)}", lora_request=self._adapter
            )
            async with aclosing(outputs):
                async for output in outputs:
                    for token in tokens_of(output.outputs[0], sampling["logprobs"]):
                        yield token
        except ValueError as error:
            raise ConfigError(f"infer_backend: vllm refuses this request ({first_line(error)})") from error


def tokens_of(output: Any, num_top: int | None = None) -> list[Token]:
    """The new tokens of one output of vLLM, with log-probabilities when it has them.

    vLLM lists the num_top likeliest tokens and, in addition, the chosen one where it is not among them.
    """
    if not output.logprobs:
        return [Token(token) for token in output.token_ids]
    found = []
    for token, places in zip(output.token_ids, output.logprobs, strict=True):
        ranked = sorted(places.items(), key=lambda item: item[1].rank)
        top = tuple((other, place.logprob) for other, place in ranked if place.rank <= (num_top or 0))
        found.append(Token(token, places[token].logprob, top))
    return found


def engine_arguments(config: RunConfig, source: Source) -> dict[str, Any]:
    """vLLM's engine arguments for a run; `vllm_config` has the last word."""
    section = config.vllm
    arguments: dict[str, Any] = {
        "model": str(source.folder),
        "dtype": _dtype(config.model.infer_dtype, source.quantization),
        "max_model_len": min(section.vllm_maxlen, source.max_positions or section.vllm_maxlen),
        "gpu_memory_utilization": section.vllm_gpu_util,
        "enforce_eager": section.vllm_enforce_eager,
        "tensor_parallel_size": max(1, torch.cuda.device_count()),
        "trust_remote_code": config.hub.trust_remote_code,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    if source.adapter is not None:
        _check_rank(source.adapter, section.vllm_max_lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": section.vllm_max_lora_rank}
    return arguments | dict(section.vllm_config or {})


def sampling_arguments(options: GenerationOptions, room: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """vLLM's sampling parameters. Our stop tokens alone end an answer, except within a schema, which ends it itself."""
    greedy = options.is_greedy
    found: dict[str, Any] = {
        "max_tokens": room,
        "temperature": 0.0 if greedy else options.temperature,
        "top_p": 1.0 if greedy else options.top_p,
        "top_k": 0 if greedy else options.top_k,
        "seed": options.seed,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "repetition_penalty": options.repetition_penalty,
        "logprobs": options.top_logprobs,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": not options.json_schema,
    }
    if options.json_schema:
        found["json_schema"] = json.dumps(parse_schema(options.json_schema))
    return found


def _dtype(wanted: str, quantization: str) -> str:
    """GPTQ kernels know float16 alone, so that is what auto means for them."""
    return "float16" if wanted == "auto" and quantization == "gptq" else wanted


def _check_rank(adapter: Path, limit: int) -> None:
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r")
    if isinstance(rank, int) and rank > limit:
        raise ConfigError(
            f"vllm_max_lora_rank: the adapter {adapter} has rank {rank} and the limit is {limit}; set "
            f"vllm_max_lora_rank: {rank}"
        )


def _start(arguments: Mapping[str, Any]) -> AsyncLLM:
    """Build vLLM's engine. Raises ConfigError for arguments it does not know, ModelError when it cannot start."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"vllm_config: {name!r} is not an engine argument of the installed vLLM{did_you_mean(name, known)}"
            )
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"infer_backend: vllm cannot start this model ({first_line(error)}); its own messages above say more, and "
            "infer_backend: huggingface runs every model"
        ) from error


def _adapter_request(adapter: Path | None) -> LoRARequest | None:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(adapter))
