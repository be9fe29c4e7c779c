"""Losses over pairs and over single judgements, against numbers worked out by hand and against TRL's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.preference import PreferenceConfig
from llamafactory.objectives import STAGES, Scores, dpo, orpo, simpo
from llamafactory.objectives._pairs import Answers, PairLoss
from llamafactory.objectives.dpo import Dpo
from llamafactory.objectives.kto import Kto, kto
from llamafactory.objectives.orpo import Orpo
from llamafactory.objectives.simpo import Simpo

CHOSEN, REJECTED = torch.tensor([2.0]), torch.tensor([-1.0])
WINS, LOSES = 0.201413, 1.701413  # -log s(1.5), -log s(-1.5): beta 1/2 times the difference 3


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (dpo.sigmoid(CHOSEN, REJECTED, 0.5), WINS),
        (dpo.sigmoid(CHOSEN, REJECTED, 0.5, 0.1), 0.9 * WINS + 0.1 * LOSES),
        (dpo.robust(CHOSEN, REJECTED, 0.5, 0.1), (0.9 * WINS - 0.1 * LOSES) / 0.8),
        (dpo.robust(CHOSEN, REJECTED, 0.5), WINS),
        (dpo.hinge(CHOSEN, REJECTED, 0.5), 0.0),
        (dpo.hinge(REJECTED, CHOSEN, 0.5), 2.5),
        (dpo.ipo(CHOSEN, REJECTED, 0.5), (3 - 1) ** 2),
        # 1 - s(0.5 * (2 - 0)) and 1 - s(0.5 * (1 - -1)) are both 1 - s(1)
        (dpo.kto_pair(CHOSEN, REJECTED, 0.5, torch.tensor([1.0, 0.0])), 0.268941),
        # -log s(1 - 1/4) and -log s(1/2 + 1/4) are both -log s(3/4)
        (dpo.bco(CHOSEN, REJECTED, 0.5, torch.tensor(0.25)), 2 * 0.386871),
        # odds of 1/2 and 1/4 are 1 and 1/3: -log s(ln 3) = -ln(3/4)
        (orpo.odds_ratio(torch.tensor([0.5]).log(), torch.tensor([0.25]).log()), 0.287682),
        (simpo.simpo(torch.tensor([-1.0]), torch.tensor([-1.5]), 2.0, 0.5), 0.474077),
    ],
)
def test_losses_of_one_pair(loss: Tensor, expected: float) -> None:
    assert loss.tolist() == pytest.approx([expected], abs=1e-5)


def test_the_odds_of_a_sure_answer_are_finite() -> None:
    sure = torch.zeros(1, requires_grad=True)
    orpo.odds_ratio(sure, torch.tensor([-1.0])).sum().backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


def scores(logps: Tensor, reference: Tensor | None = None) -> Scores:
    """Two pairs; tokens by sequence: chosen 2 and 1, rejected 3 and 1."""
    rows = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    stats = {"mean_logit": torch.arange(7.0)}
    return Scores(logps, torch.zeros(7).long(), rows, torch.ones(7), stats, reference)


LOGPS = torch.tensor([-1.0, -2.0, -3.0, -1.0, -1.0, -2.0, -4.0])
REFERENCE = torch.tensor([-1.5, -2.0, -3.0, -1.0, -1.0, -1.0, -4.5])
BATCH = {"counted": torch.tensor([True, True])}


def test_answers_are_sums_over_their_tokens() -> None:
    answers = Answers.of(scores(LOGPS, REFERENCE), 2, ld_alpha=0.5)
    assert answers.logps.tolist() == [[-3.0, -3.0], [-4.0, -4.0]]
    assert answers.lengths.tolist() == [[2.0, 1.0], [3.0, 1.0]]
    assert answers.reference.tolist() == [[-3.5, -3.0], [-3.0, -4.5]]
    assert answers.weighted.tolist() == [[-3.0, -3.0], [-3.0, -4.0]]  # the third rejected token counts half
    assert answers.logits.tolist() == [[1.0, 2.0], [12.0, 6.0]]


def test_dpo_sums_pairs_and_reports_means() -> None:
    output = Dpo(beta=0.5)(scores(LOGPS, REFERENCE), BATCH)
    # log-ratios: chosen 0.5 and 0, rejected -1 and 0.5
    expected = -math.log(1 / (1 + math.exp(-0.75))) - math.log(1 / (1 + math.exp(0.25)))
    assert output.loss_sum.item() == pytest.approx(expected, abs=1e-6)
    assert {name: pair.tolist() for name, pair in output.metrics.items()} == {
        "rewards/chosen": [0.25, 2.0], "rewards/rejected": [-0.25, 2.0], "rewards/accuracies": [1.0, 2.0],
        "logps/chosen": [-6.0, 2.0], "logps/rejected": [-8.0, 2.0],
        "logits/chosen": [3.0, 3.0], "logits/rejected": [18.0, 4.0],
    }  # fmt: skip


def test_a_pair_that_does_not_count_adds_nothing() -> None:
    whole = Dpo(beta=0.5)(scores(LOGPS, REFERENCE), BATCH)
    half = Dpo(beta=0.5)(scores(LOGPS, REFERENCE), {"counted": torch.tensor([True, False])})
    assert half.loss_sum.item() == pytest.approx(0.386871, abs=1e-5)
    assert half.metrics["rewards/chosen"].tolist() == [0.25, 1.0]
    assert whole.metrics.keys() == half.metrics.keys()


def test_the_supervised_term_is_a_mean_over_tokens() -> None:
    plain, mixed = (Dpo(beta=0.5, ftx=weight)(scores(LOGPS, REFERENCE), BATCH).loss_sum for weight in (0.0, 2.0))
    assert (mixed - plain).item() == pytest.approx(2.0 * (1.5 + 3.0))


def test_bco_is_mixed_in_by_weight() -> None:
    batch = BATCH | {"delta": torch.tensor(0.1)}
    alone, mixed = (Dpo(beta=0.5, bco_weight=weight)(scores(LOGPS, REFERENCE), batch).loss_sum for weight in (0.0, 3.0))
    only = Dpo(beta=0.5, loss="bco_pair")(scores(LOGPS, REFERENCE), batch).loss_sum
    assert mixed.item() == pytest.approx((alone + 3 * only).item() / 4)


def test_orpo_and_simpo_use_means_over_tokens() -> None:
    output = Orpo(beta=0.1, averaged=True)(scores(LOGPS), BATCH)
    assert output.metrics["sft_loss"].tolist() == pytest.approx([4.5, 2.0])
    ratio = output.metrics["odds_ratio_loss"][0].item()
    assert output.loss_sum.item() == pytest.approx(4.5 + 0.1 * ratio)
    with_ftx = Orpo(beta=0.1, averaged=True, ftx=1.0)(scores(LOGPS), BATCH)
    assert with_ftx.metrics["odds_ratio_loss"][0].item() == ratio
    simple = Simpo(beta=2.0, averaged=True, gamma=0.5)(scores(LOGPS), BATCH)
    # means: chosen -1.5 and -3, rejected -4/3 and -4: logits -5/6 and 1.5
    expected = math.log1p(math.exp(5 / 6)) + math.log1p(math.exp(-1.5))
    assert simple.loss_sum.item() == pytest.approx(expected, abs=1e-5)
    assert simple.metrics["rewards/chosen"].tolist() == pytest.approx([-9.0, 2.0])


def test_router_loss_counts_once_per_pair() -> None:
    plain = scores(LOGPS, REFERENCE)
    routed = Scores(LOGPS, plain.targets, plain.rows, plain.weights, plain.stats, REFERENCE, torch.tensor(0.25))
    objective = Dpo(beta=0.5)
    assert (objective(routed, BATCH).loss_sum - objective(plain, BATCH).loss_sum).item() == pytest.approx(0.5)


def test_kto_by_hand() -> None:
    ratios, desirable = torch.tensor([1.0, -1.0]), torch.tensor([True, False])
    losses = kto(ratios, desirable, torch.tensor(0.5), 1.0, (1.0, 2.0))
    assert losses.tolist() == pytest.approx([0.377541, 2 * 0.182426], abs=1e-5)


FEEDBACK = {"kl": torch.tensor(0.5), "counted": torch.ones(4).bool(), "desirable_share": torch.tensor(0.5)}


def test_kto_reports_each_class_and_nothing_for_none() -> None:
    batch = FEEDBACK | {"desirable": torch.tensor([True, True, False, False])}
    output = Kto(beta=0.5)(scores(LOGPS, REFERENCE), batch)
    assert output.metrics["rewards/chosen"].tolist() == [0.25, 2.0]
    assert output.metrics["logps/rejected"].tolist() == [-8.0, 2.0]
    assert output.metrics["logits/rejected"].tolist() == [18.0, 4.0]
    assert (output.metrics["kl"][0] / output.metrics["kl"][1]).item() == 0.5
    one_class = Kto(beta=0.5)(scores(LOGPS, REFERENCE), FEEDBACK | {"desirable": torch.ones(4).bool()})
    assert one_class.loss_sum.isfinite() and one_class.metrics["rewards/rejected"].tolist() == [0.0, 0.0]
    assert one_class.metrics.keys() == output.metrics.keys()


def test_kto_imitates_desirable_answers_alone() -> None:
    batch = FEEDBACK | {"desirable": torch.tensor([True, False, False, False]), "desirable_share": torch.tensor(0.25)}
    plain, mixed = (Kto(beta=0.5, ftx=weight)(scores(LOGPS, REFERENCE), batch).loss_sum for weight in (0.0, 2.0))
    # the mean over the one desirable answer, 1.5, over the share 1/4, for each of 4 examples
    assert (mixed - plain).item() / 4 == pytest.approx(2.0 * 1.5 / 0.25)


def config_of(stage: str = "dpo", **options: object) -> RunConfig:
    return RunConfig(finetuning=FinetuningConfig(stage=stage), preference=PreferenceConfig(**options))


def test_options_choose_the_loss() -> None:
    given = {"pref_beta": 0.3, "pref_ftx": 0.1, "ld_alpha": 0.5}
    common = {"beta": 0.3, "ftx": 0.1, "ld_alpha": 0.5}
    assert dpo.build(config_of(**given, dpo_label_smoothing=0.2)) == Dpo(**common, smoothing=0.2)
    assert dpo.build(config_of(**given, pref_loss="ipo")) == Dpo(**common, loss="ipo", averaged=True)
    assert dpo.build(config_of(**given, pref_bco_weight=1.0)) == Dpo(**common, bco_weight=1.0)
    assert dpo.build(config_of(**given, pref_loss="orpo")) == Orpo(**common, averaged=True)
    assert STAGES.load("orpo").build(config_of("orpo", **given)) == Orpo(**common, averaged=True)
    made = STAGES.load("simpo").build(config_of("simpo", **given, simpo_gamma=1.5))
    assert made == Simpo(**common, averaged=True, gamma=1.5)
    made = STAGES.load("kto").build(config_of("kto", pref_beta=0.3, kto_chosen_weight=2.0, kto_rejected_weight=0.5))
    assert made == Kto(beta=0.3, desirable_weight=2.0, undesirable_weight=0.5)
    assert dpo.build(config_of()).needs_reference and not STAGES.load("simpo").build(config_of()).needs_reference


def test_a_comparison_needs_its_reference() -> None:
    with pytest.raises(NotImplementedError):
        PairLoss(beta=0.1)(scores(LOGPS), BATCH)
    with pytest.raises(ValueError, match="reference"):
        Kto(beta=0.1)(scores(LOGPS), FEEDBACK | {"desirable": torch.ones(4).bool()})


@pytest.mark.slow
def test_losses_equal_those_of_trl(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from tests.training.models import pair_examples, tiny_model
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from llamafactory.data.collate import Collator
    from llamafactory.data.pairs import PairCollator
    from llamafactory.training.reference import FrozenCopy
    from llamafactory.training.scoring import TokenScorer

    policy, other = tiny_model(), tiny_model(initializer_range=0.05)
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", beta=0.3, label_smoothing=0.1, bf16=False,
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    text = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = DPOTrainer(
        model=policy, ref_model=other, args=args, train_dataset=Dataset.from_list(text),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )  # fmt: skip
    policy, other = policy.eval(), other.eval()
    rows: list[dict[str, Any]] = pair_examples([(6, 4, 7), (3, 5, 2), (9, 1, 1)])
    theirs = trainer.data_collator([_prompt_and_answers(row) for row in rows])
    batch = PairCollator(Collator(pad_token_id=0))(rows) | {"delta": torch.tensor(0.0)}
    for loss in ("sigmoid", "robust", "hinge", "ipo", "bco_pair"):
        smoothing = 0.1 if loss == "robust" else 0.0  # theirs smooths no other
        trainer.loss_types = [loss]
        trainer.args.label_smoothing = trainer.label_smoothing = smoothing
        expected = trainer._compute_loss(policy, theirs, return_outputs=False)
        objective = Dpo(beta=0.3, loss=loss, smoothing=smoothing, averaged=loss == "ipo")
        ours = objective(TokenScorer(objective, FrozenCopy(other))(policy, batch), batch).loss_sum / 3
        assert ours.item() == pytest.approx(expected.item(), abs=1e-5), loss


def _prompt_and_answers(row: dict[str, Any]) -> dict[str, list[int]]:
    start = sum(label == -100 for label in row["chosen_labels"])
    found = {"prompt_ids": row["chosen_input_ids"][:start]}
    return found | {f"{side}_ids": row[f"{side}_input_ids"][start:] for side in ("chosen", "rejected")}


def test_an_update_without_desirable_answers_has_finite_gradients() -> None:
    terms = {"desirable": torch.zeros(4).bool(), "desirable_share": torch.tensor(0.0)}
    logps = LOGPS.clone().requires_grad_()
    Kto(beta=0.5, ftx=2.0)(scores(logps, REFERENCE), FEEDBACK | terms).loss_sum.backward()
    assert logps.grad is not None and logps.grad.isfinite().all()


def test_the_odds_of_a_near_certain_answer_are_exact() -> None:
    chosen, rejected = -1e-4, -2.0
    odds = math.log(math.expm1(-chosen)) + chosen, math.log(math.expm1(-rejected)) + rejected
    expected = math.log1p(math.exp(-((chosen - rejected) - (odds[0] - odds[1]))))
    found = orpo.odds_ratio(torch.tensor([chosen]), torch.tensor([rejected]))
    assert found.item() == pytest.approx(expected, rel=1e-5)
