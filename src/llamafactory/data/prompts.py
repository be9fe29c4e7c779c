"""Prompts -> one batch of tensors, padded on the left so that answers can be sampled behind them. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptCollator:
    """Joins B prompts: input_ids, attention_mask [B, T], padded on the left.

    counted: [B] bool, False for the copies that only fill up a batch.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, object]]) -> dict[str, Tensor]:
        """Collate rows with the column input_ids into int64 tensors."""
        prompts = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = prompt
            mask[place, width - len(prompt) :] = 1
        counted = torch.tensor(["is_copy" not in row for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "counted": counted}
