"""Collating pairs and judgements."""

from __future__ import annotations

import pytest
from tests.training.models import feedback_examples, pair_examples

from llamafactory.data.collate import Collator
from llamafactory.data.pairs import FeedbackCollator, PairCollator, collator_for

ROWS = Collator(pad_token_id=0)
PAIR = {
    "chosen_input_ids": [5, 6, 7, 8], "chosen_labels": [-100, -100, 7, 8],
    "rejected_input_ids": [5, 6, 9], "rejected_labels": [-100, -100, 9],
}  # fmt: skip


def test_plain_pairs_are_all_chosen_then_all_rejected() -> None:
    batch = PairCollator(ROWS)([PAIR, PAIR])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]] * 2 + [[5, 6, 9, 0]] * 2
    assert batch["counted"].tolist() == [True, True]


def test_a_shared_row_by_hand() -> None:
    batch = PairCollator(ROWS, "bool")([PAIR])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert batch["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    # position 1, the end of the prompt, predicts the first token of both answers
    assert batch["kept_index"].tolist() == [1, 2, 1]
    assert batch["kept_targets"].tolist() == [7, 8, 9]
    assert batch["kept_rows"].tolist() == [0, 0, 1]


def test_answers_that_begin_alike_are_both_learnt_from_their_first_token() -> None:
    pair = PAIR | {"rejected_input_ids": [5, 6, 7, 9], "rejected_labels": [-100, -100, 7, 9]}
    batch = PairCollator(ROWS, "bool")([pair])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 7, 9]]
    assert batch["kept_targets"].tolist() == [7, 8, 7, 9]


def test_sides_without_a_prompt_in_common_share_nothing() -> None:
    pair = {
        "chosen_input_ids": [5, 6, 7], "chosen_labels": [-100, -100, 7],
        "rejected_input_ids": [4, 9], "rejected_labels": [-100, 9],
    }  # fmt: skip
    batch = PairCollator(ROWS, "bool")([pair])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["attention_mask"][0, 0, 3:].int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert list(zip(batch["kept_index"].tolist(), batch["kept_targets"].tolist(), strict=True)) == [(1, 7), (3, 9)]


def test_short_prompts_are_not_shared() -> None:
    assert "kept_index" not in PairCollator(ROWS, "bool")(pair_examples([(1, 9, 9)]))
    assert "kept_index" in PairCollator(ROWS, "bool")(pair_examples([(9, 3, 3)]))


def test_padding_of_a_shared_row_sees_one_token() -> None:
    rows = Collator(pad_token_id=0, pad_to_multiple_of=8)
    mask = PairCollator(rows, "bool")([PAIR])["attention_mask"][0, 0]
    assert mask.shape == (8, 8) and mask[5:].int().tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 3
    additive = PairCollator(rows, "additive")([PAIR])["attention_mask"][0, 0]
    assert ((additive == 0) == mask).all() and (additive[~mask] < -1e30).all()


@pytest.mark.parametrize("sharing", [None, "bool"])
def test_stored_logps_follow_the_order_of_sequences(sharing: object) -> None:
    stored = PAIR | {"chosen_reference_logps": [-1.0, -2.0], "rejected_reference_logps": [-3.0]}
    filler = stored | {"chosen_labels": [-100] * 4, "rejected_labels": [-100] * 3}
    batch = PairCollator(ROWS, sharing)([stored, filler])  # type: ignore[arg-type]
    assert batch["reference_logps"].tolist() == [-1.0, -2.0, -3.0]
    assert batch["counted"].tolist() == [True, False]


def test_judged_answers_come_with_mismatched_ones() -> None:
    rows = feedback_examples([(2, 3), (1, 2)])
    batch = FeedbackCollator(ROWS)(rows)
    assert batch["desirable"].tolist() == [True, False]
    assert batch["kl_input_ids"].tolist()[1][1:] == rows[0]["input_ids"][2:]  # type: ignore[index]
    assert batch["kl_counted"].tolist() == [True, True] and "kl_attention_mask" in batch
    unmatched = [rows[0] | {"kl_labels": [-100] * 4}, rows[1]]
    assert FeedbackCollator(ROWS)(unmatched)["kl_counted"].tolist() == [False, True]


def test_padding_is_never_learnt_as_an_answer() -> None:
    learns = Collator(pad_token_id=0, ignore_pad_token_for_loss=False)
    batch = collator_for("preference", learns)([PAIR])
    assert batch["labels"].tolist()[1] == [-100, -100, 9, -100]
    assert collator_for("conversation", learns) is learns
