"""How the HTTP server behaves while clients crowd it: /health, the first token, and the place of a client that leaves.

    python benchmarks/serving_latency.py

A tiny model is served on loopback; clients, half of them streaming, ask until the time is over. Beside them /health is
asked all the time; before, it is asked while nobody else is there, and clients with long answers leave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import threading
import time

import httpx
from workload import sentences

from llamafactory.api.app import create_app
from llamafactory.api.server import build_server
from llamafactory.api.settings import Settings
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.engines.huggingface import HuggingFaceEngine
from llamafactory.models.starter import build_model, build_tokenizer
from llamafactory.rendering.renderer import build_renderer

Times = dict[str, list[float]]


def build_engine(hidden_size: int) -> HuggingFaceEngine:
    tokenizer = build_tokenizer(sentences(), vocab_size=8192)
    renderer = build_renderer(tokenizer, TemplateConfig(template="chatml"))
    return HuggingFaceEngine(build_model(tokenizer, hidden_size=hidden_size), tokenizer, renderer)


def ask(text: str, tokens: int, *, stream: bool) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": stream}


async def talk(web: httpx.AsyncClient, number: int, end: float, times: Times) -> None:
    """Ask until the time is over; of streams, remember when the first token came."""
    while time.monotonic() < end:
        start = time.monotonic()
        body = ask(f"Question {number}", 64, stream=number % 2 == 0)
        async with web.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            lines = answer.aiter_lines()
            await anext(lines)
            if number % 2 == 0:
                times["first token"].append(time.monotonic() - start)
            async for _ in lines:
                continue


async def look(web: httpx.AsyncClient, name: str, end: float, times: Times) -> None:
    while time.monotonic() < end:
        start = time.monotonic()
        (await web.get("/health")).raise_for_status()
        times[name].append(time.monotonic() - start)
        await asyncio.sleep(0.02)


async def leave(web: httpx.AsyncClient, gate: object, times: Times) -> None:
    """Leave a long answer, and see how long it is held."""
    body = ask("Tell me everything", 1500, stream=True)
    async with web.stream("POST", "/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_lines())
    start = time.monotonic()
    while gate.running + gate.waiting:
        await asyncio.sleep(0.001)
    times["place freed"].append(time.monotonic() - start)


async def measure(url: str, gate: object, arguments: argparse.Namespace) -> Times:
    times: Times = {name: [] for name in ("health, idle", "health, crowded", "first token", "place freed")}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as web:
        await look(web, "health, idle", time.monotonic() + 2, times)
        for _ in range(5):
            await leave(web, gate, times)
        end = time.monotonic() + arguments.seconds
        clients = [talk(web, number, end, times) for number in range(arguments.clients)]
        await asyncio.gather(*clients, look(web, "health, crowded", end, times))
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--hidden_size", type=int, default=128)
    arguments = parser.parse_args()
    app = create_app(build_engine(arguments.hidden_size), Settings(), GenerationOptions(do_sample=False))
    server = build_server(app, Settings())
    with socket.socket(proto=socket.IPPROTO_TCP) as sock:  # without the protocol asyncio lets small packets wait
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        times = asyncio.run(measure(url, app.state.work.gate, arguments))
        server.should_exit = True
        thread.join()
    print(f"{arguments.clients} clients, milliseconds")
    for name, seconds in times.items():
        found = sorted(1000 * second for second in seconds)
        row = {
            "count": len(found),
            "median": round(statistics.median(found), 1),
            "p99": round(found[int(0.99 * (len(found) - 1))], 1),
            "most": round(found[-1], 1),
        }
        print(f"{name:<16}{json.dumps(row)}")


if __name__ == "__main__":
    main()
