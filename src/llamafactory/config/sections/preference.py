"""Learning from preferences and feedback: DPO, KTO, ORPO, SimPO and the reference model. Knows no model class."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llamafactory.config.section import CommaList, NonNegativeReal, PositiveReal, Section, Share, option


class PreferenceConfig(Section):
    """Losses of stages dpo and kto, and the reference model."""

    title: ClassVar[str] = "Preference learning"

    pref_beta: PositiveReal = option(0.1, "Strength beta of DPO, KTO, ORPO and SimPO.")
    pref_ftx: NonNegativeReal = option(0.0, "Weight of the supervised loss on the chosen answer.")
    pref_bco_weight: NonNegativeReal = option(0.0, "Weight of the BCO loss mixed in.")
    pref_loss: Literal["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo", "robust", "bco_pair"] = option(
        "sigmoid", "Loss of stage dpo; orpo and simpo use no reference model."
    )
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = option(
        0.0, "Assumed share of swapped labels; only with pref_loss sigmoid or robust.", unit="share"
    )
    kto_chosen_weight: NonNegativeReal = option(1.0, "Weight of desirable examples in KTO.")
    kto_rejected_weight: NonNegativeReal = option(1.0, "Weight of undesirable examples in KTO.")
    simpo_gamma: NonNegativeReal = option(0.5, "Target margin gamma of SimPO.")
    ld_alpha: Share | None = option(None, "LD-DPO: weight of tokens beyond the shorter answer of a pair.")
    ref_model: str | None = option(None, "Reference model; left out, the model before training.")
    ref_model_adapters: CommaList = option((), "Adapters of the reference model, separated by commas.")
    ref_model_quantization_bit: Literal[4, 8] | None = option(None, "Quantization of the reference model.", unit="bits")
    precompute_ref_logps: bool | None = option(
        None,
        "Compute the reference's log-probabilities once and keep them on disk; left out, where that saves work: with "
        "several epochs, or where a second model would be held.",
    )
