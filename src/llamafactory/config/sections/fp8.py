"""Training in FP8. Knows no kernel."""

from typing import ClassVar, Literal

from llamafactory.config.section import TRAIN, Section, option


class Fp8Config(Section):
    """FP8 matrix products."""

    title: ClassVar[str] = "FP8"
    commands: ClassVar[tuple[str, ...]] = TRAIN

    fp8: bool = option(False, "Compute matrix products in FP8.")
    fp8_backend: Literal["auto", "torchao", "te", "msamp"] = option("auto", "Package that provides them.")
    fp8_enable_fsdp_float8_all_gather: bool = option(False, "Also gather sharded weights in FP8.")
