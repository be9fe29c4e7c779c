"""LoRA (Hu et al. 2021, arXiv:2106.09685), with rsLoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353), through PEFT.

The matrices start as `lora_init` says. Knows no optimizer (LoRA+ groups are made elsewhere).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, TaskType

from llamafactory.facts import LORA_ONLY, Clash, Facts
from llamafactory.models.adapters._peft import apply_adapter
from llamafactory.models.start import start_adapter
from llamafactory.models.targets import target_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "LoRA",
    variants=(
        Facts(
            "DoRA",
            chosen_by=(("use_dora", (True,)),),
            clashes=(
                LORA_ONLY,
                Clash(
                    "lora_target_parameters", "the lengths of fused weights cannot be learned apart", "remove use_dora"
                ),
                Clash(
                    "quantization_bit",
                    "PEFT's DoRA cannot read 8-bit weights",
                    "use 4 bits, or remove use_dora",
                    values=(8,),
                ),
            ),
        ),
        Facts("rsLoRA", chosen_by=(("use_rslora", (True,)),), clashes=(LORA_ONLY,)),
        Facts(
            "LoRA on fused weights",
            chosen_by=(("lora_target_parameters", ()),),
            clashes=(
                LORA_ONLY,
                Clash("lora_dropout", "adapters of fused weights have no dropout", "set it to 0", allowed=(0,)),
            ),
        ),
    ),
)


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    applied = apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)
    created = trainable and (not config.model.adapter_name_or_path or config.lora.create_new_adapter)
    if isinstance(applied, PeftModel) and created:
        start_adapter(applied, config)
    return applied


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora.lora_rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.lora_dropout,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
        target_modules=targets,
        target_parameters=target_parameters(model, config) or None,
    )
