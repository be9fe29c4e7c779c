"""EETQ: 8-bit weights with one scale per output channel (https://github.com/NetEase-FuXi/EETQ), to answer on a GPU.

transformers 5 has layers of its own for it, with kernels from the hub; PEFT 0.21 cannot put adapters on those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llamafactory import env
from llamafactory.errors import ConfigError
from llamafactory.facts import PACKED_WEIGHTS, Clash, Facts
from llamafactory.models.quantization import Quantization, Quantizer, stored_settings
from llamafactory.parts import require

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "EETQ",
    clashes=(
        Clash("quantization_bit", "eetq has 8 bits", "set quantization_bit to 8", allowed=(8,)),
        Clash(
            "do_train",
            "PEFT knows the layers of the package eetq, and transformers 5 has its own",
            "train on bnb with 8 bits",
        ),
        PACKED_WEIGHTS,
    ),
)


def require_packages() -> None:
    """Raise MissingPackageError unless kernels is installed."""
    require("kernels", "quantization_method: eetq", install="kernels")


def build(config: RunConfig, hf_config: PretrainedConfig, *, dtype: torch.dtype, trainable: bool) -> Quantizer:
    """The quantizer for `quantization_bit: 8`, or for a stored checkpoint. Raises ConfigError, MissingPackageError."""
    del trainable
    require_packages()
    if config.training.use_cpu or not torch.cuda.is_available():
        raise ConfigError(
            "quantization_method: eetq has kernels for CUDA GPUs only, and this run has none; use bnb or hqq with "
            "quantization_bit: 8 on a CPU"
        )
    from transformers import EetqConfig

    stored = stored_settings(hf_config) is not None
    result = Quantization("eetq", 8, "int8", stored)
    options: dict[str, object] = {"device_map": {"": torch.device("cuda", env.local_rank())}}
    if not stored:
        options["quantization_config"] = EetqConfig("int8")
    note = f"quantization: {result.describe()}, computed in {str(dtype).removeprefix('torch.')}"
    return Quantizer(result, note, options)
