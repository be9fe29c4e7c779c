"""Rendering and tokenizing conversations, against the bare Rust tokenizer on the same text and core.

    python benchmarks/rendering.py

Ours turns records into tokens with their loss weights. The tokenizer only turns the rendered text, already in memory,
into ids. One thread, in turn, CPU time; the median of the pairs' ratios is printed. The last line compares a set of
conversations of 200 turns with one of 100.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer
from workload import sentences

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.models.starter import build_tokenizer
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer, build_renderer
from llamafactory.rendering.tokens import join

KINDS = {"short chats": (3, 12), "usual chats": (20, 120), "long texts": (200, 600)}
"""Words in a message, from and to."""

BATCH = 256


def conversations(num: int, *, words: tuple[int, int], turns: int, seed: int = 0) -> list[Conversation]:
    """Conversations of `turns` questions and answers, drawn from the demo texts."""
    rng, pool = random.Random(seed), " ".join(sentences()).split()

    def text() -> str:
        start = rng.randrange(len(pool) - words[1])
        return " ".join(pool[start : start + rng.randint(*words)])

    roles = ("user", "assistant") * turns
    return [Conversation(tuple(Message(role, text()) for role in roles), system="Be brief.") for _ in range(num)]


def cpu_seconds(work: Callable[[Sequence], int], items: Sequence) -> float:
    start = time.process_time()
    work(items)
    return time.process_time() - start


def batches(items: Sequence) -> list[Sequence]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


@dataclass(frozen=True)
class Contenders:
    """Both count the tokens they make."""

    renderer: Renderer
    tokenizer: Tokenizer

    def ours(self, talks: Sequence[Conversation]) -> int:
        records = (turns for batch in batches(talks) for turns in self.renderer.encode(batch))
        return sum(len(join(p for t in turns for p in (*t.source, *t.target)).input_ids) for turns in records)

    def bare(self, texts: Sequence[str]) -> int:
        encode = self.tokenizer.encode_batch_fast
        return sum(len(found.ids) for batch in batches(texts) for found in encode(batch, add_special_tokens=False))

    def row(self, kind: str, talks: Sequence[Conversation], repeats: int) -> str:
        """One line of the table."""
        texts = [self.renderer.text(talk) for talk in talks]
        num_tokens = self.bare(texts)
        assert self.ours(talks) == num_tokens
        pairs = [(cpu_seconds(self.bare, texts), cpu_seconds(self.ours, talks)) for _ in range(repeats)]
        low, high = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
        return f"| {kind} | {len(talks)} | {num_tokens} | {low:.2f} | {high:.2f} | {ratio:.2f} |"

    def growth(self, repeats: int) -> float:
        """How many times as long 200 turns take as 100."""
        few, many = (conversations(20, words=KINDS["usual chats"], turns=turns) for turns in (100, 200))
        self.ours(many)
        return statistics.median(cpu_seconds(self.ours, many) / cpu_seconds(self.ours, few) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="qwen")
    parser.add_argument("--messages", type=int, default=12_000, help="messages in the set of short chats")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    tokenizer = build_tokenizer(sentences(), vocab_size=8192)
    renderer = build_renderer(tokenizer, TemplateConfig(template=arguments.template))
    contenders = Contenders(renderer, tokenizer.backend_tokenizer)
    print("| four turns of | conversations | tokens | bare tokenizer, s | llamafactory, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, words in KINDS.items():
        talks = conversations(max(1, arguments.messages // 8 // (words[1] // 60 + 1)), words=words, turns=4)
        print(contenders.row(f"{kind} ({words[0]}-{words[1]} words a message)", talks, arguments.repeats))
    print(f"\n200 turns take {contenders.growth(arguments.repeats):.2f} times as long as 100.")


if __name__ == "__main__":
    main()
