"""The next token of each answer, from the model's logits: grammar, penalties, truncation, the draw, log-probabilities.

Pure tensor functions and the state of one answer. Knows no model and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llamafactory.errors import ModelError
from llamafactory.inference.engine import GenerationOptions
from llamafactory.inference.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Token:
    """A chosen token. logprob: natural, of the model's own distribution; top: the likeliest ids with theirs."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Answer:
    """What choosing the tokens of one answer needs.

    prompt: ids before the answer. limit: most tokens of it. stop_ids: tokens that end it. generator: the answer's own
    random state, so that what else is computed beside it cannot change it; None for greedy.
    """

    prompt: list[int]
    options: GenerationOptions
    stop_ids: frozenset[int]
    limit: int
    grammar: Grammar | None = None
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return len(self.tokens) >= self.limit or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)


def new_generator(options: GenerationOptions) -> torch.Generator | None:
    """The random state of an answer: from its seed, else drawn from the process's; None when nothing is random."""
    if options.is_greedy:
        return None
    seed = int(torch.randint(2**62, ())) if options.seed is None else options.seed
    return torch.Generator().manual_seed(seed)


def choose(logits: Tensor, answers: Sequence[Answer]) -> list[Token | ModelError]:
    """Choose the next token of each answer and append it; a row that cannot go on gets its error instead.

    logits: [B, V] in any float format, one row for each answer; not changed.
    """
    raw = logits.float()
    scores = raw.clone()
    failed: dict[int, ModelError] = {}
    for row, answer in enumerate(answers):
        try:
            if answer.grammar is not None:
                answer.grammar.mask(scores[row])
        except ModelError as error:
            failed[row] = error
        penalise(scores[row], answer)
    picked = pick(scores, answers)
    sound = scores.amax(dim=-1).isfinite().tolist()
    found: list[Token | ModelError] = []
    for row, (answer, token) in enumerate(zip(answers, picked, strict=True)):
        if row in failed or not sound[row]:
            found.append(failed.get(row) or _no_number(answer))
            continue
        answer.tokens.append(token)
        if answer.grammar is not None and token not in answer.stop_ids:
            answer.grammar.accept(token)
        found.append(report(raw[row], token, answer.options.top_logprobs))
    return found


def penalise(scores: Tensor, answer: Answer) -> None:
    """Lower the scores [V] of tokens that were said, in place.

    repetition_penalty p (CTRL, https://arxiv.org/abs/1909.05858, section 4.1) concerns prompt and answer: positive
    scores are divided by p, negative ones multiplied. Then presence_penalty and frequency_penalty times the count are
    subtracted for tokens of the answer.
    """
    options = answer.options
    if options.repetition_penalty != 1:
        seen = torch.tensor(answer.prompt + answer.tokens, device=scores.device).unique()
        values = scores[seen]
        scores[seen] = torch.where(values > 0, values / options.repetition_penalty, values * options.repetition_penalty)
    if answer.tokens and (options.presence_penalty or options.frequency_penalty):
        said, counts = torch.tensor(answer.tokens, device=scores.device).unique(return_counts=True)
        scores[said] -= options.presence_penalty + options.frequency_penalty * counts


def pick(scores: Tensor, answers: Sequence[Answer]) -> list[int]:
    """The likeliest token of greedy rows, a drawn one of the others; scores [B, V]."""
    picked = scores.argmax(dim=-1)
    rows = [row for row, answer in enumerate(answers) if answer.generator is not None]
    if rows:
        options = [answers[row].options for row in rows]
        uniform = [torch.rand((), generator=answers[row].generator).item() for row in rows]
        drawn = draw(
            scores if len(rows) == len(answers) else scores[rows],
            temperature=[option.temperature for option in options],
            top_k=[option.top_k for option in options],
            top_p=[option.top_p for option in options],
            uniform=uniform,
        )
        picked[rows] = drawn
    found: list[int] = picked.tolist()
    return found


def draw(
    scores: Tensor,
    *,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    uniform: Sequence[float],
) -> Tensor:
    """Draw one token id for each row, [B], by inverting the cumulative distribution at `uniform` in [0, 1).

    scores: [B, V]. The distribution is softmax(scores / temperature), cut to the top_k likeliest tokens (0: all), then
    to the fewest whose probabilities reach top_p (nucleus sampling, https://arxiv.org/abs/1904.09751, section 3.1).
    """
    size = scores.shape[-1]
    limits = [min(limit, size) if limit > 0 else size for limit in top_k]
    values, ids = scores.topk(max(limits), dim=-1)

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=scores.device).unsqueeze(1)

    beyond = torch.arange(values.shape[-1], device=scores.device) >= column(limits)
    probs = (values / column(temperature)).masked_fill(beyond, float("-inf")).softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    probs = probs.masked_fill(before >= column(top_p), 0)
    total = probs.cumsum(dim=-1)
    place = torch.searchsorted(total, column(uniform) * total[:, -1:], right=True)
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, place.minimum(last.clamp(min=0))).squeeze(1)


def report(logits: Tensor, token: int, num_top: int | None) -> Token:
    """The token with its log-probability under logits [V] and those of the num_top likeliest; bare for None."""
    if num_top is None:
        return Token(token)
    logps = logits.log_softmax(dim=-1)
    values, ids = logps.topk(min(num_top, logps.shape[-1]))
    return Token(token, float(logps[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _no_number(answer: Answer) -> ModelError:
    return ModelError(
        f"the model's logits after {len(answer.prompt) + len(answer.tokens)} tokens hold no usable number (NaN or "
        "infinity), so no token can be chosen; load it with infer_dtype: bfloat16 or float32, or check the weights"
    )
