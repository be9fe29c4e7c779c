"""Variants of the supervised loss. Knows no model."""

from typing import ClassVar

from llamafactory.config.section import NonNegativeReal, Section, option


class LossConfig(Section):
    """DFT, ASFT and EAFT: at most one replaces plain cross-entropy in stage sft."""

    title: ClassVar[str] = "Loss of stage sft"

    use_dft_loss: bool = option(False, "Weigh each token's loss by its own probability (DFT).")
    use_asft_loss: bool = option(False, "DFT plus a divergence from the reference model (ASFT).")
    asft_alpha: NonNegativeReal = option(0.1, "Weight of the divergence in ASFT.")
    use_eaft_loss: bool = option(False, "Weigh each token's loss by the entropy of the prediction (EAFT).")
    eaft_alpha: NonNegativeReal = option(1.0, "Exponent of the entropy in EAFT.")
