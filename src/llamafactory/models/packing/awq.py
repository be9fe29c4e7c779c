"""AWQ (Lin et al. 2024, arXiv:2306.00978), by gptqmodel: 4 bits in groups, salient channels scaled up before rounding.

gptqmodel has kernels for it on a GPU only, and reads the model from a folder itself.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llamafactory.errors import ConfigError
from llamafactory.models.packing import Samples, Target
from llamafactory.models.packing.gptq import group_size
from llamafactory.models.quantization._stored import require_gptqmodel
from llamafactory.models.save import save_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

_GENERATION = "generation_config.json"


def prepare(config: RunConfig) -> None:
    """Raise ConfigError without a GPU, MissingPackageError without gptqmodel."""
    if config.training.use_cpu or not torch.cuda.is_available():
        raise ConfigError(
            "export_quantization_method: awq quantizes on a CUDA GPU only, and this run has none; use gptq, which "
            "also runs on a CPU"
        )
    require_gptqmodel("export_quantization_bit")


def pack(model: PreTrainedModel, folder: Path, samples: Samples, *, bits: int, target: Target) -> None:
    """Write plain weights aside, and quantize those into `folder`. Raises ConfigError, CheckpointError."""
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import AWQConfig

    settings = AWQConfig(bits=bits, group_size=group_size(model))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="plain.") as plain:
        save_weights(model, Path(plain), record=target.record, options=target.options)
        packed = GPTQModel.load(plain, settings)
        packed.quantize([list(ids) for ids in samples], batch_size=1)
        packed.save(str(folder))
        shutil.copyfile(Path(plain) / _GENERATION, folder / _GENERATION)
