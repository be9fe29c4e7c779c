"""Rows -> one batch of tensors. Padding is decided by position, never by token id.

Knows token columns, not where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llamafactory.rendering.tokens import IGNORE_INDEX

Row = Mapping[str, Sequence[int]]
Layout = Literal["padded", "flat"]


@dataclass(frozen=True)
class Collator:
    """Joins rows of input_ids, labels and optional weights and `lengths` (packed rows).

    padded: input_ids, labels [B, T] and attention_mask [B, T], padded on the right to a multiple of
    `pad_to_multiple_of`. Packed rows have position_ids that restart at each example, and at the padding, instead of an
    attention_mask.
    flat: everything [1, sum T] without padding, position_ids restarting at each example, no attention_mask.

    The label of the first token of every example is ignored in both layouts: nothing before it may predict it.
    ignore_pad_token_for_loss: when False, padding is learnt as `pad_token_id`.
    """

    pad_token_id: int
    layout: Layout = "padded"
    pad_to_multiple_of: int = 1
    ignore_pad_token_for_loss: bool = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows into int64 tensors (weights are fp32)."""
        packed = "lengths" in rows[0]
        segments = [list(row["lengths"]) if packed else [len(row["input_ids"])] for row in rows]
        columns = {
            "input_ids": [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows],
            "labels": [_labels(row["labels"], lengths) for row, lengths in zip(rows, segments, strict=True)],
        }
        if any(row.get("weights") is not None for row in rows):
            columns["weights"] = [_weights(row) for row in rows]
        positions = [_positions(lengths) for lengths in segments]
        if self.layout == "flat":
            joined = {name: torch.cat(tensors)[None] for name, tensors in columns.items()}
            return {**joined, "position_ids": torch.cat(positions)[None]}
        return self._pad(columns, positions if packed else None)

    def padded_width(self, length: int) -> int:
        """Tokens of a row that holds `length` of them and padding."""
        return -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of

    def _pad(self, columns: Mapping[str, list[Tensor]], positions: list[Tensor] | None) -> dict[str, Tensor]:
        lengths = [len(ids) for ids in columns["input_ids"]]
        width = self.padded_width(max(lengths))
        label_pad = IGNORE_INDEX if self.ignore_pad_token_for_loss else self.pad_token_id
        fill = {
            "input_ids": self.pad_token_id,
            "labels": label_pad,
            "weights": 0 if self.ignore_pad_token_for_loss else 1,
        }
        batch = {name: _fill(tensors, width, fill[name]) for name, tensors in columns.items()}
        if positions is None:
            mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
            batch["attention_mask"] = mask.long()
        else:
            rows = [torch.cat([row, torch.arange(width - len(row))]) for row in positions]
            batch["position_ids"] = torch.stack(rows)
        return batch


def _fill(tensors: Sequence[Tensor], width: int, value: int) -> Tensor:
    batch = tensors[0].new_full((len(tensors), width), value)
    for row, tensor in zip(batch, tensors, strict=True):
        row[: len(tensor)] = tensor
    return batch


def _labels(labels: Sequence[int], lengths: Sequence[int]) -> Tensor:
    tensor = torch.tensor(labels, dtype=torch.long)
    start = 0
    for length in lengths:
        tensor[start] = IGNORE_INDEX
        start += length
    return tensor


def _weights(row: Row) -> Tensor:
    weights = row.get("weights")
    if weights is not None:
        return torch.as_tensor(weights, dtype=torch.float32)
    return (torch.as_tensor(row["labels"]) != IGNORE_INDEX).float()


def _positions(lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])
