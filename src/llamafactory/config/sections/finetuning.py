"""What is trained and towards which goal. Knows no algorithm."""

from typing import ClassVar, Literal

from llamafactory.config.section import Positive, Section, option

ADAPTER_METHODS = ("lora", "oft", "vera", "ia3", "loha", "lokr", "adalora")
"""Values of finetuning_type that put adapters on a frozen base."""


class FinetuningConfig(Section):
    """Stage, method, precision of the trained weights and what is reported."""

    title: ClassVar[str] = "Fine-tuning"

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "simpo"] = option(
        "sft",
        "Training goal: pt pre-training, sft supervised, rm reward model, ppo, dpo, kto; orpo and simpo are dpo with "
        "that pref_loss.",
    )
    finetuning_type: Literal["lora", "oft", "vera", "ia3", "loha", "lokr", "adalora", "freeze", "full"] = option(
        "lora",
        "Which weights learn: adapters (lora low-rank, oft orthogonal, vera, ia3, loha, lokr, adalora), some layers "
        "(freeze), or all (full).",
    )
    pure_bf16: bool = option(False, "Hold and train the weights in bfloat16 without mixed precision.")
    use_llama_pro: bool = option(False, "Train only the blocks added by LLaMA Pro expansion.")
    freeze_vision_tower: bool = option(True, "Keep the image and audio encoders as they are.")
    freeze_multi_modal_projector: bool = option(True, "Keep the projector between encoder and language model as it is.")
    freeze_language_model: bool = option(False, "Keep the language model as it is.")
    compute_accuracy: bool = option(False, "Report token accuracy in evaluations.")
    disable_shuffling: bool = option(False, "Take the examples in file order.")
    early_stopping_steps: Positive | None = option(
        None, "Stop after so many evaluations without a better metric.", unit="evaluations"
    )
    plot_loss: bool = option(False, "Draw the loss curve as PNG files in output_dir.")
    include_effective_tokens_per_second: bool = option(False, "Report real tokens per second and device at the end.")
