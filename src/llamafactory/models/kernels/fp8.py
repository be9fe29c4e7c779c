"""Matrix products in 8-bit floating point through torchao (docs: "Float8 training"), on weights that stay as they are.

Every linear layer of the decoder computes its three products (output, and both gradients) from inputs rounded to e4m3
with one scale per row ("rowwise"), or per tensor where FSDP also gathers weights in FP8. The output embedding, adapters
and layers whose sides are no multiples of 16 stay in bf16. Knows torchao's conversion, no trainer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError, ModelError
from llamafactory.facts import DEEPSPEED, Clash, Facts
from llamafactory.models.kernels import require_gpu
from llamafactory.parts import require

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MULTIPLE = 16

FACTS = Facts(
    "FP8 training",
    chosen_by=(("fp8", (True,)), ("fp8_enable_fsdp_float8_all_gather", (True,))),
    clashes=(
        Clash("quantization_bit", "the weights are quantized already", "remove one of the two"),
        Clash("stage", "only stages pt and sft compute in FP8", "remove fp8", allowed=("pt", "sft")),
        Clash("use_unsloth", "unsloth brings its own matrix products", "keep one of the two"),
        Clash(DEEPSPEED, "DeepSpeed keeps weights in a form of its own", "use FSDP"),
        Clash("fp16", "what is not FP8 is bf16", "use bf16: true", values=(True,)),
    ),
)


def check(config: RunConfig) -> None:
    """Raise ConfigError without bf16 or a GPU that has FP8, MissingPackageError without torchao."""
    if config.precision not in {"bf16", "pure_bf16"}:
        raise ConfigError(
            f"{config.place('fp8')}: fp8: true with precision {config.precision}: what is not FP8 is computed in bf16; "
            "set bf16: true, or pure_bf16: true"
        )
    require("torchao", f"{config.place('fp8')}: fp8: true", extra="fp8")
    require_gpu(config, "fp8", "a matrix product in FP8", capability=(8, 9))


def apply_fp8(model: PreTrainedModel | PeftModel, *, sharded_gather: bool = False, emulate: bool = False) -> str:
    """Convert the linear layers of a model that is ready to train, in place; returns the note for the log.

    sharded_gather: FSDP gathers the weights in FP8. emulate: round to FP8 and multiply in fp32, where no GPU is.
    Raises ModelError when no layer can be converted.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if sharded_gather:
        options = Float8LinearConfig(enable_fsdp_float8_all_gather=True, pad_inner_dim=True, emulate=emulate)
    else:
        recipe = Float8LinearConfig.from_recipe_name("rowwise")
        options = dataclasses.replace(recipe, pad_inner_dim=True, emulate=emulate)
    names = convertible(model)
    if not names:
        raise ModelError(
            f"fp8: {model.config.model_type} has no linear layer in its decoder with sides that are multiples of "
            f"{MULTIPLE}; remove fp8"
        )
    convert_to_float8_training(model, module_filter_fn=lambda module, name: name in names, config=options)
    scales = "tensor" if sharded_gather else "row"
    return f"fp8: {len(names)} linear layers multiply in FP8, with one scale per {scales}"


def convertible(model: PreTrainedModel | PeftModel) -> set[str]:
    """Names of the linear layers that compute in FP8."""
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and module.weight.shape[0] % MULTIPLE == module.weight.shape[1] % MULTIPLE == 0
        and not any(part.startswith(("lora_", "modules_to_save", "v_head", "router")) for part in name.split("."))
    }
