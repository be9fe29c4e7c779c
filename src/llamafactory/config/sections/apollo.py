"""The APOLLO optimizer. Knows no model."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, Positive, PositiveReal, Section, option


class ApolloConfig(Section):
    """APOLLO: learning-rate scaling in a low-rank space."""

    title: ClassVar[str] = "APOLLO"

    use_apollo: bool = option(False, "Use the APOLLO optimizer.")
    apollo_target: CommaList = option(("all",), "Modules whose gradients are projected, separated by commas, or all.")
    apollo_rank: Positive = option(16, "Rank of the projection.")
    apollo_update_interval: Positive = option(200, "Steps between renewals of the projection.", unit="steps")
    apollo_scale: PositiveReal = option(32.0, "Scale of the update.")
    apollo_proj: Literal["svd", "random"] = option("random", "How the projection is made.")
    apollo_proj_type: Literal["std", "right", "left"] = option("std", "Side of the projection.")
    apollo_scale_type: Literal["channel", "tensor"] = option("channel", "One scale per channel or per tensor.")
    apollo_layerwise: bool = option(False, "Update each layer during the backward pass to save memory.")
    apollo_scale_front: bool = option(False, "Limit the growth of the norm before scaling instead of after.")
