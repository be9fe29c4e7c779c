"""Collation: padded, packed and flat batches mean the same, and padding is masked by position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafactory.data.collate import Collator
from llamafactory.rendering.tokens import IGNORE_INDEX

PAD = 2
ROWS = [
    {"input_ids": [5, PAD, 7], "labels": [IGNORE_INDEX, PAD, 7]},
    {"input_ids": [8, 9, 10, 11, PAD], "labels": [8, 9, IGNORE_INDEX, 11, PAD]},
]
PACKED = [{"input_ids": [5, PAD, 7, 8, 9, 10, 11, PAD], "labels": [IGNORE_INDEX, PAD, 7, 8, 9, IGNORE_INDEX, 11, PAD],
           "lengths": [3, 5]}]  # fmt: skip


def test_padded_batch_is_masked_by_position() -> None:
    batch = Collator(PAD, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]
    assert batch["labels"][0].tolist() == [-100, PAD, 7, *[-100] * 5]
    assert batch["labels"][1].tolist() == [-100, 9, -100, 11, PAD, *[-100] * 3]
    assert "position_ids" not in batch


def test_padding_can_be_learnt() -> None:
    batch = Collator(PAD, ignore_pad_token_for_loss=False)(ROWS)
    assert batch["labels"][0].tolist() == [-100, PAD, 7, PAD, PAD]


def test_flat_batch() -> None:
    batch = Collator(PAD, layout="flat", pad_to_multiple_of=8)(ROWS)
    assert batch["input_ids"].tolist() == [[5, PAD, 7, 8, 9, 10, 11, PAD]]
    assert batch["labels"].tolist() == [[-100, PAD, 7, -100, 9, -100, 11, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert "attention_mask" not in batch


def test_packed_rows_restart_positions_and_padding_is_a_segment_of_its_own() -> None:
    short = {"input_ids": [6, 7], "labels": [6, 7], "lengths": [2]}
    batch = Collator(PAD, pad_to_multiple_of=2)([*PACKED, short])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch["labels"][0].tolist() == [-100, PAD, 7, -100, 9, -100, 11, PAD]
    assert "attention_mask" not in batch
    flat = Collator(PAD, layout="flat")([*PACKED, short])
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]]


def test_weights_are_padded_and_filled() -> None:
    rows = [{**ROWS[0], "weights": [0.0, 0.5, 2.0]}, {**ROWS[1], "weights": None}]
    batch = Collator(PAD)(rows)
    assert batch["weights"].tolist() == [[0, 0.5, 2, 0, 0], [1, 1, 0, 1, 1]]
    assert batch["weights"].dtype == torch.float32
    assert "weights" not in Collator(PAD)([{**row, "weights": None} for row in ROWS])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_layouts_give_the_same_token_losses(model_dir: Path, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation=attention).eval()

    def losses(batch: dict[str, torch.Tensor]) -> list[float]:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        found = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        return sorted(loss for loss in found.tolist() if loss)

    expected = losses(Collator(PAD)(ROWS))
    assert len(expected) == 5
    short = {"input_ids": [5], "labels": [5], "lengths": [1]}
    for batch in (Collator(PAD, layout="flat")(ROWS), Collator(PAD)(PACKED), Collator(PAD)([*PACKED, short]),
                  Collator(PAD, layout="flat")(PACKED)):  # fmt: skip
        assert losses(batch) == pytest.approx(expected, abs=1e-5)
