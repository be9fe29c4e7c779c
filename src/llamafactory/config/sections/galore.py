"""The GaLore optimizer. Knows no model."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, Positive, PositiveReal, Section, option


class GaloreConfig(Section):
    """Gradient low-rank projection."""

    title: ClassVar[str] = "GaLore"

    use_galore: bool = option(False, "Use the GaLore optimizer.")
    galore_target: CommaList = option(("all",), "Modules whose gradients are projected, separated by commas, or all.")
    galore_rank: Positive = option(16, "Rank of the projection.")
    galore_update_interval: Positive = option(200, "Steps between renewals of the projection.", unit="steps")
    galore_scale: PositiveReal = option(2.0, "Scale of the projected update.")
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = option("std", "Side of the projection.")
    galore_layerwise: bool = option(False, "Update each layer during the backward pass to save memory.")
