"""Orthogonal adapters. Knows no model."""

from typing import Annotated, ClassVar

from pydantic import Field

from llamafactory.config.section import CommaList, Section, Whole, option


class OftConfig(Section):
    """OFT: rotations in blocks."""

    title: ClassVar[str] = "OFT method"

    oft_rank: Whole = option(0, "Number of blocks; 0 derives it from oft_block_size.")
    oft_block_size: Whole = option(32, "Size of a block; 0 derives it from oft_rank.")
    oft_target: CommaList = option(("all",), "Modules that get an adapter, separated by commas, or all.")
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = option(0.0, "Dropout of whole blocks.", unit="probability")
