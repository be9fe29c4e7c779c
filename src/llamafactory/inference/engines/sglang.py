"""Answers from SGLang: a server process that we start, watch and stop, asked over loopback HTTP.

Prompts and texts are those of the other engines: the server gets token ids and gives token ids. Knows options, SGLang's
arguments and its `/generate` protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import torch

from llamafactory.errors import ConfigError, ModelError, first_line
from llamafactory.inference.answer_text import AnswerText, room_for_answer
from llamafactory.inference.engine import Delta, EngineFailure, GenerationOptions
from llamafactory.inference.foreign import Source, find_source, no_scores, refuse_options
from llamafactory.inference.grammar import parse_schema
from llamafactory.inference.handover import Outbox
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.sampling import Token
from llamafactory.inference.server_process import ServerProcess, free_port
from llamafactory.parts import require
from llamafactory.rendering.records import Conversation

if TYPE_CHECKING:
    from llamafactory.config import RunConfig

START_SECONDS = 300.0
MAX_CONNECTIONS = 256  # requests the server sees at once; it batches them, further ones wait here
ADAPTER = "adapter"


def build(config: RunConfig) -> SglangEngine:
    """Start an SGLang server over the model and the adapter that `config` names, and wait until it answers."""
    require("sglang", "infer_backend: sglang", install="sglang")
    bundle, renderer = load_renderer(config)
    source = find_source(config, bundle)
    port = free_port()
    limit = min(config.sglang.sglang_maxlen, source.max_positions or config.sglang.sglang_maxlen)
    server = ServerProcess("sglang", [sys.executable, *server_arguments(config, source, limit, port)], port)
    server.wait_until_healthy("/health", START_SECONDS)
    return SglangEngine(server, AnswerText(bundle.tokenizer, renderer), limit, has_adapter=source.adapter is not None)


class SglangEngine:
    """A running server behind the engine protocol; it batches by itself."""

    def __init__(self, server: ServerProcess, texts: AnswerText, max_length: int, *, has_adapter: bool) -> None:
        self.renderer = texts.renderer
        self._server = server
        self._texts = texts
        self._max_length = max_length
        self._has_adapter = has_adapter
        self._pool = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="sglang")

    async def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Engine.generate`."""
        refuse_options(options, "sglang")
        ids = self._texts.prompt_ids(prompt)
        room = room_for_answer(options, len(ids), self._max_length)
        body = request_body(ids, options, room, self._texts.stop_ids, has_adapter=self._has_adapter)
        async with (
            aclosing(self._tokens(body)) as tokens,
            aclosing(self._texts.deltas(tokens, len(ids), options)) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        """The server runs models that answer only; see `Engine.score`."""
        raise no_scores("sglang")

    async def close(self) -> None:
        """Stop the server, which ends running answers with an error."""
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._pool.shutdown, wait=True)

    async def _tokens(self, body: Mapping[str, Any]) -> AsyncGenerator[Token, None]:
        """The server's tokens; leaving early closes the connection, at which the server drops the request."""
        outbox = Outbox()
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port)
        self._pool.submit(self._ask, connection, json.dumps(body).encode(), outbox)
        try:
            async with aclosing(outbox.read()) as tokens:
                async for token in tokens:
                    yield token
        finally:
            _hang_up(connection)

    def _ask(self, connection: http.client.HTTPConnection, body: bytes, outbox: Outbox) -> None:
        """One request, in a thread."""
        try:
            if not outbox.cancelled.is_set():
                connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                if response.status != 200:
                    raise _refused(response.status, response.read(4096))
                for token in read_tokens(iter(response.readline, b"")):
                    outbox.put(token)
                    if outbox.cancelled.is_set():
                        break
        except (ConfigError, ModelError) as error:
            outbox.put(error)
        except (OSError, ValueError, http.client.HTTPException) as error:
            outbox.put(
                EngineFailure(f"the sglang server broke off an answer ({first_line(error)}); start the engine again")
            )
        finally:
            connection.close()
            outbox.put(None)


def server_arguments(config: RunConfig, source: Source, max_length: int, port: int) -> list[str]:
    """What follows the interpreter on the server's command line; `sglang_config` comes last and wins."""
    section = config.sglang
    size = section.sglang_tp_size if section.sglang_tp_size > 0 else max(1, torch.cuda.device_count())
    found = ["-m", "sglang.launch_server", "--model-path", str(source.folder), "--host", "127.0.0.1"]
    found += ["--port", str(port), "--context-length", str(max_length), "--tp-size", str(size)]
    found += ["--mem-fraction-static", str(section.sglang_mem_fraction), "--dtype", config.model.infer_dtype]
    if config.hub.trust_remote_code:
        found.append("--trust-remote-code")
    if source.adapter is not None:
        found += ["--lora-paths", f"{ADAPTER}={source.adapter}", "--lora-backend", section.sglang_lora_backend]
        found.append("--disable-radix-cache")
    for name, value in (section.sglang_config or {}).items():
        found += _flag(name, value)
    return found


def request_body(
    prompt: list[int], options: GenerationOptions, room: int, stop_ids: Sequence[int], *, has_adapter: bool
) -> dict[str, Any]:
    """A request of SGLang's `/generate`. Our stop tokens alone end an answer, except within a schema."""
    greedy = options.is_greedy
    sampling: dict[str, Any] = {
        "max_new_tokens": room,
        "temperature": 0.0 if greedy else options.temperature,
        "top_p": 1.0 if greedy else options.top_p,
        "top_k": options.top_k if options.top_k and not greedy else -1,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "repetition_penalty": options.repetition_penalty,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": not options.json_schema,
    }
    if options.seed is not None:
        sampling["sampling_seed"] = options.seed
    if options.json_schema:
        sampling["json_schema"] = json.dumps(parse_schema(options.json_schema))
    body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    if has_adapter:
        body["lora_path"] = ADAPTER
    if options.top_logprobs is not None:
        body |= {"return_logprob": True, "top_logprobs_num": options.top_logprobs, "logprob_start_len": -1}
    return body


def read_tokens(lines: Iterator[bytes]) -> Iterator[Token]:
    """Tokens out of the server's event stream.

    Every event repeats the ids so far, or, with `--stream-output`, holds the new ones; the count in its `meta_info`
    tells which. Raises ModelError for an error event and a stream that breaks off.
    """
    seen = 0
    for line in lines:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if not data or line.startswith(b":"):
            continue
        event = json.loads(data)
        if "error" in event:
            raise ModelError(f"the sglang server reports an error: {_message(event)}")
        ids, meta = event.get("output_ids", []), event.get("meta_info", {})
        start = seen if len(ids) == meta.get("completion_tokens", len(ids)) else 0
        yield from _tokens_of(ids[start:], meta, seen)
        seen += len(ids) - start
    raise EngineFailure("the sglang server ended its answer too early; start the engine again")


def _tokens_of(ids: list[int], meta: Mapping[str, Any], seen: int) -> Iterator[Token]:
    """Tokens with the log-probabilities of an event, which are (value, id, text) for all tokens or for the new ones."""
    values, tops = meta.get("output_token_logprobs") or [], meta.get("output_top_logprobs") or []
    first = seen if len(values) >= seen + len(ids) else 0
    for number, token in enumerate(ids, start=first):
        if number >= len(values):
            yield Token(token)
            continue
        top = tops[number] if number < len(tops) and tops[number] else []
        yield Token(token, values[number][0], tuple((entry[1], entry[0]) for entry in top))


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def _refused(status: int, body: bytes) -> ConfigError | ModelError:
    kind = ConfigError if 400 <= status < 500 else ModelError
    try:
        message = _message(json.loads(body))
    except ValueError:
        message = body.decode(errors="replace").strip()[:200]
    return kind(f"infer_backend: sglang refuses this request with status {status} ({message})")


def _message(event: Mapping[str, Any]) -> str:
    error = event.get("error", event)
    text = error.get("message", "") if isinstance(error, dict) else str(error)
    return " ".join(str(text or event.get("message", "no reason given")).split())[:200]


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Wake the thread that reads from this connection, if it does."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
