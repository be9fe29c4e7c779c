"""LoRA+: a larger learning rate for the B matrices of LoRA, https://arxiv.org/abs/2402.12354.

lora_A trains with `learning_rate`, lora_B and vectors with `learning_rate * loraplus_lr_ratio`, embedding adapters with
`loraplus_lr_embedding`. The update rule is that of `optim`.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.facts import LORA_ONLY, Facts

KEY = "loraplus_lr_ratio"
FACTS = Facts("LoRA+", chosen_by=((KEY, ()),), clashes=(LORA_ONLY,))


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """The optimizer of `optim` with the four parameter groups of LoRA+. Raises ConfigError without LoRA weights."""
    ratio = config.lora.loraplus_lr_ratio
    assert ratio is not None
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if options.keys() & {"params", "model", "optimizer_dict"}:
        raise ConfigError(
            f"{KEY}: optim: {args.optim} makes its own parameter groups, which LoRA+ also does; "
            "choose an optim such as adamw_torch"
        )
    rates = {"a": args.learning_rate, "b": args.learning_rate * ratio, "embedding": config.lora.loraplus_lr_embedding}
    groups = []
    for (kind, decays), parameters in _split(model).items():
        decay = args.weight_decay if decays else 0.0
        groups.append({"params": parameters, "lr": rates[kind], "weight_decay": decay})
    return optimizer_class(groups, **options)


def _split(model: nn.Module) -> dict[tuple[str, bool], list[nn.Parameter]]:
    """(a | b | embedding, whether weight decay applies) -> trained parameters. Vectors and norms never decay."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not any("lora_B" in name for name in trained):
        raise ConfigError(f"{KEY}: there are no LoRA weights to train; set finetuning_type: lora, or remove {KEY}")
    for name, parameter in trained.items():
        groups.setdefault((_kind(name, parameter), parameter.ndim > 1), []).append(parameter)
    return groups


def _kind(name: str, parameter: nn.Parameter) -> str:
    if "lora_embedding_B" in name:
        return "embedding"
    return "b" if "lora_B" in name or parameter.ndim == 1 else "a"
