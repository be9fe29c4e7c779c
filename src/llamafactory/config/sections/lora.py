"""Low-rank adapters. Knows no model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llamafactory.config.section import CommaList, NonNegativeReal, Positive, PositiveReal, Section, option


class LoraConfig(Section):
    """LoRA and its relatives: rsLoRA, DoRA, LoRA+, PiSSA, and the ranks and targets of VeRA, IA3, LoHa and LoKr."""

    title: ClassVar[str] = "LoRA method"

    lora_rank: Positive = option(8, "Rank of the adapter matrices.")
    lora_alpha: Positive | None = option(None, "Scale of the adapter, divided by the rank; left out, twice lora_rank.")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "Dropout on the adapter's input.", unit="probability"
    )
    lora_target: CommaList = option(
        ("all",), "Modules that get an adapter, separated by commas; all means every linear layer but the head."
    )
    additional_target: CommaList = option((), "Modules trained in full next to the adapter, separated by commas.")
    loraplus_lr_ratio: PositiveReal | None = option(None, "LoRA+: learning rate of matrix B over that of matrix A.")
    loraplus_lr_embedding: NonNegativeReal = option(1e-6, "LoRA+: learning rate of embedding adapters.")
    use_rslora: bool = option(False, "Divide the scale by the square root of the rank.")
    use_dora: bool = option(False, "Learn magnitude and direction of the weights apart (DoRA).")
    lora_init: Literal["default", "gaussian", "pissa", "olora", "loftq", "eva", "lora_ga"] = option(
        "default",
        "Start of the matrices: default (B zero), gaussian; pissa, olora, loftq (the base is rounded to nf4), which "
        "take it out of the weights; eva, lora_ga, which look at the first batches.",
    )
    lora_init_batches: Positive = option(8, "Batches of training data that the starts eva and lora_ga look at.")
    lora_target_parameters: CommaList = option(
        (), "Fused weights that get an adapter, such as mlp.experts.gate_up_proj, separated by commas."
    )
    pissa_init: bool = option(
        False, "Start the adapter from the principal components of the weights, as lora_init: pissa does."
    )
    pissa_iter: int = option(16, "Iterations of the fast decomposition for PiSSA; -1 decomposes in full.")
    pissa_convert: bool = option(False, "Save a PiSSA adapter as a plain LoRA adapter of the original base.")
    create_new_adapter: bool = option(False, "Merge the given adapters and train a fresh one.")

    @property
    def init(self) -> str:
        """The start in effect: lora_init, or pissa where pissa_init asks for it."""
        return "pissa" if self.pissa_init else self.lora_init

    @property
    def changes_base(self) -> bool:
        """True when the start takes the first values of the adapter out of the base."""
        return self.init in {"pissa", "olora", "loftq", "lora_ga"}

    @property
    def alpha(self) -> int:
        """The scale in effect: lora_alpha, or twice the rank when it was left out."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
