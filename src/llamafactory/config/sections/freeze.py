"""Training some layers only. Knows no model."""

from typing import ClassVar

from llamafactory.config.section import CommaList, Section, option


class FreezeConfig(Section):
    """Which layers and modules learn with finetuning_type freeze."""

    title: ClassVar[str] = "Freeze method"

    freeze_trainable_layers: int = option(
        2,
        "Layers that learn: n the last n, -n the first n; with use_llama_pro the number of added blocks.",
        unit="layers",
    )
    freeze_trainable_modules: CommaList = option(
        ("all",), "Modules inside those layers that learn, separated by commas, or all."
    )
    freeze_extra_modules: CommaList = option((), "Modules outside the layers that learn too, separated by commas.")
