"""Fused kernels of the package liger-kernel (arXiv:2410.10989): norms, rotary positions, gated feed-forward layers.

Its fused losses stay off: the trainer scores supervised tokens alone, in chunks, from the hidden states before the
output embedding, and a forward that computes its own loss would never show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamafactory.config.run import RunConfig
from llamafactory.facts import Clash, Facts
from llamafactory.logs import get_logger
from llamafactory.models.kernels import require_gpu
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = get_logger(__name__)

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")

FACTS = Facts(
    "Liger kernels",
    chosen_by=(("enable_liger_kernel", (True,)),),
    clashes=(Clash("use_unsloth", "unsloth brings its own kernels", "keep one of the two"),),
)


def check(config: RunConfig) -> None:
    """Raise ConfigError without a GPU, MissingPackageError without the package."""
    require("liger_kernel", f"{config.place('enable_liger_kernel')}: enable_liger_kernel: true", extra="liger")
    require_gpu(config, "enable_liger_kernel", "a Triton kernel")


def apply_liger(model: PreTrainedModel, options: Mapping[str, bool] | None = None) -> str | None:
    """Put the kernels for this family into `model`, in place; returns the note for the log.

    options: `liger_kernel_config`, kernels to switch on or off by Liger's names; its losses stay off whatever it says.
    A family without kernels is left alone with a warning (None).
    """
    from liger_kernel.transformers import monkey_patch

    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        logger.warning("enable_liger_kernel has no effect: liger-kernel has no kernels for %s", kind)
        return None
    chosen = {**(options or {}), **dict.fromkeys(LOSSES, False)}
    monkey_patch._apply_liger_kernel_to_instance(model=model, **chosen)
    return f"liger kernels: those for {kind}, without its losses"
