"""The BAdam optimizer. Knows no model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llamafactory.config.section import Section, Whole, option


class BadamConfig(Section):
    """BAdam: Adam on one block of weights at a time."""

    title: ClassVar[str] = "BAdam"

    use_badam: bool = option(False, "Use the BAdam optimizer.")
    badam_mode: Literal["layer", "ratio"] = option("layer", "Blocks are whole layers, or a share of every tensor.")
    badam_start_block: Whole | None = option(None, "Block to start with.")
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] | None = option(
        "ascending", "Order in which blocks take turns."
    )
    badam_switch_interval: Annotated[int, Field(ge=-1)] | None = option(
        50, "Steps before the next block takes its turn; -1 never switches.", unit="steps"
    )
    badam_update_ratio: Annotated[float, Field(gt=1e-6, le=1)] = option(
        0.05, "Share updated in ratio mode.", unit="share"
    )
    badam_mask_mode: Literal["adjacent", "scatter"] = option("adjacent", "Shape of the updated share in ratio mode.")
    badam_verbose: Literal[0, 1, 2] = option(0, "How much BAdam prints.")
