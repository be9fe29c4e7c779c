"""Preference and feedback rows -> one batch of tensors.

A pair shares its prompt: where the model allows it, one row holds [prompt, chosen answer, rejected answer], so that the
prompt is computed once. Knows token columns, no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llamafactory.data.collate import Collator, Row
from llamafactory.data.kinds import Kind
from llamafactory.rendering.tokens import IGNORE_INDEX

SIDES = ("chosen", "rejected")
WORTHWHILE = 0.9
"""Prompts are shared when a batch then has at most this share of its plain tokens: its attention is less regular."""

Mask = Literal["bool", "additive"]


def collator_for(kind: Kind, rows: Collator, sharing: Mask | None = None) -> Collator | PairCollator | FeedbackCollator:
    """What joins rows of a kind. rows: how single sequences are joined. sharing: see `PairCollator`."""
    if kind == "preference":
        return PairCollator(replace(rows, ignore_pad_token_for_loss=True), sharing)
    if kind == "feedback":
        return FeedbackCollator(replace(rows, ignore_pad_token_for_loss=True))
    return rows


@dataclass(frozen=True)
class PairCollator:
    """Joins P rows of chosen_* and rejected_* columns into 2P sequences: all chosen, then all rejected.

    Plain batches look like those of `rows`. A shared batch has one row for each pair, with position_ids [P, T] that go
    on behind the prompt in both answers, and attention_mask [P, 1, T, T]: the rejected answer does not see the chosen.
    Since one position predicts two tokens there, it names its supervised tokens itself: kept_index [N] into the
    flattened P*T positions, kept_targets [N], kept_rows [N] (the sequence); N is ordered by sequence. last_index [2P]
    is the last token of every sequence.

    counted: [P] bool, False for pairs without a supervised token. reference_logps: [N] fp32 in the order of sequences,
    when the rows have them. sharing: form of the mask of shared rows, bool (True: is seen) or additive (0: is seen);
    None: never shared.
    """

    rows: Collator
    sharing: Mask | None = None

    def __call__(self, pairs: Sequence[Row]) -> dict[str, Tensor]:
        """Collate pairs into int64 tensors."""
        batch = self._tokens(pairs)
        batch["counted"] = torch.tensor([any(_is_learned(pair[f"{side}_labels"]) for side in SIDES) for pair in pairs])
        if "chosen_reference_logps" in pairs[0]:
            batch["reference_logps"] = _stored_logps(
                pairs, batch["counted"], [f"{side}_reference_logps" for side in SIDES]
            )
        return batch

    def _tokens(self, pairs: Sequence[Row]) -> dict[str, Tensor]:
        if self.sharing is not None:
            shared = [_SharedRow.of(pair) for pair in pairs]
            plain_length = max(len(pair[f"{side}_input_ids"]) for pair in pairs for side in SIDES)
            if max(len(row.ids) for row in shared) <= WORTHWHILE * 2 * plain_length:
                return self._share(shared)
        return self.rows([_side(pair, side) for side in SIDES for pair in pairs])

    def _share(self, rows: Sequence[_SharedRow]) -> dict[str, Tensor]:
        width = self.rows.padded_width(max(len(row.ids) for row in rows))
        ids = torch.full((len(rows), width), self.rows.pad_token_id)
        places = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            places[index, : len(row.ids)] = torch.tensor(row.places)
        kept = [row.kept(side, at * width, at + side * len(rows)) for side in (0, 1) for at, row in enumerate(rows)]
        index, targets, sequences = torch.cat(kept, dim=1)
        mask = _shared_mask(rows, width)
        if self.sharing == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        last = [at * width + row.ends[side] - 1 for side in (0, 1) for at, row in enumerate(rows)]
        named = {"kept_index": index, "kept_targets": targets, "kept_rows": sequences, "last_index": torch.tensor(last)}
        return {"input_ids": ids, "position_ids": places, "attention_mask": mask, **named}


@dataclass(frozen=True)
class FeedbackCollator:
    """Joins B rows of single answers; the mismatched answers of the kl_* columns become a batch of their own.

    The batch of `rows`, and the same names with the prefix kl_. desirable: [B] bool. counted and kl_counted: [B] bool,
    False for sequences without a supervised token. reference_logps, kl_reference_logps: [N] fp32, when rows have them.
    """

    rows: Collator

    def __call__(self, examples: Sequence[Row]) -> dict[str, Tensor]:
        """Collate examples into int64 tensors."""
        batch = self._part(examples, "")
        batch["desirable"] = torch.tensor([bool(row["desirable"]) for row in examples])
        return batch | {f"kl_{name}": value for name, value in self._part(examples, "kl_").items()}

    def _part(self, examples: Sequence[Row], prefix: str) -> dict[str, Tensor]:
        names = ("input_ids", "labels")
        batch = self.rows([{name: row[f"{prefix}{name}"] for name in names} for row in examples])
        batch["counted"] = torch.tensor([_is_learned(row[f"{prefix}labels"]) for row in examples])
        if "reference_logps" in examples[0]:
            batch["reference_logps"] = _stored_logps(examples, batch["counted"], [f"{prefix}reference_logps"])
        return batch


@dataclass(frozen=True, slots=True)
class _SharedRow:
    """One pair as [prompt, chosen answer, rejected answer].

    prompt: tokens both sides begin with and neither learns. end: end of the chosen answer. labels: of both sides.
    """

    ids: list[int]
    places: list[int]
    labels: tuple[Sequence[int], Sequence[int]]
    prompt: int
    end: int

    @classmethod
    def of(cls, pair: Row) -> _SharedRow:
        chosen, rejected = (list(pair[f"{side}_input_ids"]) for side in SIDES)
        labels = (pair["chosen_labels"], pair["rejected_labels"])
        prompt = _equal_prompt(chosen, rejected, *labels)
        places = [*range(len(chosen)), *range(prompt, len(rejected))]
        return cls([*chosen, *rejected[prompt:]], places, labels, prompt, len(chosen))

    @property
    def ends(self) -> tuple[int, int]:
        """Position behind the last token of either side."""
        return self.end, len(self.ids)

    def kept(self, side: int, offset: int, sequence: int) -> Tensor:
        """[3, n]: position that predicts, token to predict, sequence; for side 0 chosen, 1 rejected."""
        learned = [place for place, label in enumerate(self.labels[side]) if label != IGNORE_INDEX and place]
        shift = self.end - self.prompt if side else 0
        before = [place - 1 if place <= self.prompt else place - 1 + shift for place in learned]
        targets = [self.labels[side][place] for place in learned]
        found = [[offset + place for place in before], targets, [sequence] * len(learned)]
        return torch.tensor(found, dtype=torch.long).reshape(3, -1)


def _equal_prompt(chosen: Sequence[int], rejected: Sequence[int], *labels: Sequence[int]) -> int:
    count = 0
    for one, other, *learned in zip(chosen, rejected, *labels, strict=False):
        if one != other or any(label != IGNORE_INDEX for label in learned):
            break
        count += 1
    return count


def _shared_mask(rows: Sequence[_SharedRow], width: int) -> Tensor:
    """[P, 1, T, T] bool, True where the row's position sees the column's; padding sees the first token alone."""
    place = torch.arange(width)
    prompt, end, length = (
        torch.tensor(values)[:, None]
        for values in zip(*((row.prompt, row.end, len(row.ids)) for row in rows), strict=True)
    )
    part = (place >= prompt).long() + (place >= end) + (place >= length)  # 0 prompt, 1 chosen, 2 rejected, 3 padding
    part = part.masked_fill(place >= length, 3)
    sees = (place[:, None] >= place) & ((part[:, None] == 0) | (part[:, None] == part[:, :, None]))
    padding = (part == 3)[:, :, None]
    return torch.where(padding, place == 0, sees)[:, None]


def _side(pair: Row, side: str) -> Row:
    return {"input_ids": pair[f"{side}_input_ids"], "labels": pair[f"{side}_labels"]}


def _is_learned(labels: Sequence[int]) -> bool:
    """Whether any token but the first, which nothing predicts, has a label."""
    return any(label != IGNORE_INDEX for label in labels[1:])


def _stored_logps(rows: Sequence[Mapping[str, Sequence[float]]], counted: Tensor, columns: Sequence[str]) -> Tensor:
    """[N] fp32 of all columns in turn; rows that do not count have none."""
    values = [row[column] for column in columns for row, counts in zip(rows, counted.tolist(), strict=True) if counts]
    return torch.tensor([value for part in values for value in part], dtype=torch.float32)
