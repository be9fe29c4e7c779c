"""Answers per second of the huggingface engine under concurrent clients: together, one at a time, and by transformers.

    python benchmarks/serving_throughput.py

All contenders answer the same prompts greedily with the same model in this process, in turn. One at a time is the same
engine with one row; `generate` is the model's own method, one prompt after the other; `generate_batch` is transformers'
own continuous batching. Time is processor time, because it depends less on what else the machine does; the time to
the first token is wall time, from the request on, with all clients waiting. Random weights of this size make every next
token depend on all before it, so equal texts mean that no token differed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from workload import sentences

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.engines.huggingface import HuggingFaceEngine
from llamafactory.models.starter import build_model, build_tokenizer
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import build_renderer

WEIGHT_STD = 0.1


@dataclass
class Result:
    """What one contender did: texts in the order of the prompts, seconds, and seconds to each first token."""

    texts: list[str]
    processor_seconds: float = 0.0
    wall_seconds: float = 0.0
    first_seconds: list[float] = field(default_factory=list)


class Bench:
    """One model and the questions all contenders answer."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.tokenizer = build_tokenizer(sentences(), vocab_size=8192)
        self.model = build_model(
            self.tokenizer, hidden_size=arguments.hidden_size, num_layers=arguments.layers, tie_word_embeddings=False
        ).eval()
        for weight in self.model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=WEIGHT_STD)
        self.renderer = build_renderer(self.tokenizer, TemplateConfig(template="chatml"))
        rng, pool = random.Random(0), sentences()
        self.questions = [
            Conversation((Message("user", " ".join(rng.choice(pool) for _ in range(rng.randint(1, 4)))),))
            for _ in range(arguments.clients * arguments.requests)
        ]
        self.prompts = [self.renderer.prompt_ids(question) for question in self.questions]

    def engine(self, rows: int) -> Result:
        """The engine with so many rows and all clients at once, each asking its next question after an answer."""
        return asyncio.run(self._clients(rows))

    def generate(self) -> Result:
        """`model.generate`, prompt after prompt."""
        texts = []
        for prompt in self.prompts:
            ids = torch.tensor([prompt])
            found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=self._settings())
            texts.append(self._text(found[0, len(prompt) :].tolist()))
        return Result(texts)

    def generate_batch(self) -> Result:
        """transformers' continuous batching over all prompts, with as many blocks as they need."""
        longest = max(map(len, self.prompts)) + self.arguments.tokens
        blocks = self.arguments.clients * (longest // 256 + 2)
        found = self.model.generate_batch(
            self.prompts,
            generation_config=self._settings(),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=blocks, max_batch_tokens=512, max_requests_per_batch=self.arguments.clients
            ),
        )
        ordered = sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return Result([self._text(output.generated_tokens) for _, output in ordered])

    async def _clients(self, rows: int) -> Result:
        engine = HuggingFaceEngine(self.model, self.tokenizer, self.renderer, max_concurrent=rows)
        options = GenerationOptions(do_sample=False, max_new_tokens=self.arguments.tokens)
        result = Result([""] * len(self.questions))

        async def client(first: int) -> None:
            for index in range(first, len(self.questions), self.arguments.clients):
                start = time.monotonic()
                async for delta in engine.generate(self.questions[index], options):
                    if not result.texts[index]:
                        result.first_seconds.append(time.monotonic() - start)
                    result.texts[index] += delta.text

        await asyncio.gather(*(client(first) for first in range(self.arguments.clients)))
        await engine.close()
        return result

    def _settings(self) -> GenerationConfig:
        pad = self.tokenizer.pad_token_id
        stop = list(self.renderer.stop_ids)
        return GenerationConfig(
            max_new_tokens=self.arguments.tokens, do_sample=False, eos_token_id=stop, pad_token_id=pad
        )

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def timed(run: Callable[[], Result]) -> Result:
    """Run a contender with both clocks."""
    wall, processor = time.monotonic(), time.process_time()
    with torch.no_grad():
        result = run()
    result.processor_seconds = time.process_time() - processor
    result.wall_seconds = time.monotonic() - wall
    return result


def report(name: str, result: Result, expected: list[str], tokens: int) -> str:
    """One row of the table."""
    waits = sorted(result.first_seconds)
    first = f"{statistics.median(waits):.2f} / {waits[int(0.95 * (len(waits) - 1))]:.2f}" if waits else "-"
    equal = sum(text == other for text, other in zip(result.texts, expected, strict=True))
    rate = tokens / result.processor_seconds
    return (
        f"| {name} | {rate:.0f} | {result.processor_seconds:.1f} | {result.wall_seconds:.1f} | {first} "
        f"| {equal}/{len(expected)} |"
    )


def main() -> None:
    """Run all contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2, help="questions of each client")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    sizes = [len(prompt) for prompt in bench.prompts]
    print(f"{bench.model.num_parameters() / 1e6:.0f} million weights")
    print(f"{len(sizes)} prompts of {min(sizes)} to {max(sizes)} tokens, {arguments.tokens} tokens each answer")
    contenders: dict[str, Callable[[], Result]] = {
        "generate": bench.generate,
        "one at a time": lambda: bench.engine(1),
        "together": lambda: bench.engine(arguments.clients),
        "generate_batch": bench.generate_batch,
    }
    results = {name: timed(run) for name, run in contenders.items()}
    print("| contender | tokens / processor s | processor s | wall s | first token median / p95 s | equal texts |")
    total = len(sizes) * arguments.tokens
    for name, result in results.items():
        print(report(name, result, results["generate"].texts, total))
    ratio = results["one at a time"].processor_seconds / results["together"].processor_seconds
    print(f"together / one at a time: {ratio:.1f}")


if __name__ == "__main__":
    main()
