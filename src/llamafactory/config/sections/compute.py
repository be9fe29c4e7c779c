"""How the forward and backward pass are computed: kernels, checkpointing, casts. Knows no model."""

from typing import ClassVar, Literal

from llamafactory.config.section import NonNegativeReal, Section, option


class ComputeConfig(Section):
    """Kernels, activation checkpointing and precision of single layers."""

    title: ClassVar[str] = "Compute"

    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = option(
        "auto", "Attention kernel: auto lets the model choose, disabled is the plain one, fa2 and fa3 need a package."
    )
    shift_attn: bool = option(False, "Shifted sparse attention of LongLoRA.")
    use_unsloth: bool = option(False, "Load the model through the package unsloth.")
    use_unsloth_gc: bool = option(False, "Keep checkpointed activations in CPU memory.")
    enable_liger_kernel: bool = option(False, "Use the fused kernels of the package liger-kernel.")
    use_v1_kernels: bool | None = option(False, "Accepted for compatibility; there is no such kernel set here.")
    moe_aux_loss_coef: NonNegativeReal | None = option(
        None, "Weight of the router's balance loss in mixture-of-experts models; 0 or left out is off."
    )
    disable_gradient_checkpointing: bool = option(
        False, "Keep all activations instead of recomputing them: faster, and takes more memory."
    )
    use_reentrant_gc: bool = option(True, "Use the reentrant variant of activation checkpointing.")
    upcast_layernorm: bool = option(False, "Keep the weights of normalisation layers in float32.")
    upcast_lmhead_output: bool = option(False, "Cast the output of the language-model head to float32.")
    use_kv_cache: bool = option(True, "Keep keys and values of earlier tokens while generating.")
