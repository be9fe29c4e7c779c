"""Merging adapters into their base, and proving that the saved result is base plus adapter and nothing else.

Order of use: `observe` the model with its adapter, `merge_adapters`, save, `verify_merge` on the saved folder.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from llamafactory.errors import ModelError
from llamafactory.models.build import reload_model
from llamafactory.models.quantization import quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest allowed difference of logits, as a share of the largest logit: rounding of one merged matrix product.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_PREFIX = "base_model.model."
_ADAPTER_PARTS = ("lora_", "oft_", "vera_", "ia3_", "hada_", "lokr_")


@dataclass(frozen=True, slots=True)
class MergeProbe:
    """What base plus adapter does before the merge.

    probe_ids: [B, T]. logits: [B, T, V] fp32. digests: tensor name -> digest of the base tensor. targets: names of the
    tensors the adapter touches -> whether the merged tensor must differ from the base's.
    """

    probe_ids: Tensor
    logits: Tensor
    digests: dict[str, str]
    targets: dict[str, bool]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Result of a successful check. difference and tolerance: as a share of the largest logit."""

    difference: float
    tolerance: float
    changed: frozenset[str]

    def line(self) -> str:
        """One line for the log."""
        return (
            f"merge verified: {len(self.changed)} tensors changed, logits differ by {self.difference:.2e} of the "
            f"largest (allowed {self.tolerance:.0e})"
        )


def refuse_quantized(model: PreTrainedModel | PeftModel) -> None:
    """Raise ModelError for a quantized base: merging into rounded weights gives another model."""
    if quantization_of(model) is not None:
        raise ModelError(
            "an adapter cannot be merged into a quantized base without changing what it does; "
            "load the unquantized base (remove quantization_bit) and merge into that"
        )


def merge_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Merge the adapter into its base and return the plain model. Raises ModelError where the result would differ."""
    refuse_quantized(model)
    if not isinstance(model, PeftModel):
        return model
    _refuse_shared(model.get_base_model())
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"the adapter could not be merged ({error}); it holds broken values, train it again"
        ) from error


def _refuse_shared(model: PreTrainedModel) -> None:
    """Raise ModelError when a low-rank update sits on one of two modules that share a weight: it would reach both."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        head is not None
        and head.weight is inputs.weight
        and (isinstance(inputs, LoraLayer) or isinstance(head, LoraLayer))
    ):
        raise ModelError(
            "the adapter changes an embedding that shares its weight with the output head; merging would change both, "
            "train it with additional_target: embed_tokens instead of lora_target"
        )


@torch.no_grad()
def observe(model: PeftModel, probe_ids: Tensor) -> MergeProbe:
    """Record logits, base tensors and expected changes. Call before `merge_adapters`. probe_ids: [B, T] token ids."""
    refuse_quantized(model)
    model.eval()
    targets: dict[str, bool] = {}
    for name, module in model.named_modules():
        path = _plain(name)
        if isinstance(module, ParamWrapper):
            targets[f"{path}.{module.parameter_name}"] = _fused_changes(module)
        elif isinstance(module, LoraLayer):
            targets[f"{path}.weight"] = _lora_changes(module)
        elif isinstance(module, BaseTunerLayer):
            targets[f"{path}.weight"] = _merge_changes(module)
        elif isinstance(module, ModulesToSaveWrapper):
            targets.update(_replaced(path, module))
    base = model.get_base_model()
    digests = {_plain(name): _digest(tensor) for name, tensor in base.state_dict().items() if _is_base(name)}
    return MergeProbe(probe_ids, _logits(model, probe_ids), digests, targets, base.dtype)


def _lora_changes(module: LoraLayer) -> bool:
    """True when merging changes at least one stored value."""
    weight = module.get_base_layer().weight
    for adapter in module.active_adapters:
        delta = module.get_delta_weight(adapter)
        if module.use_dora.get(adapter, False):
            return bool((delta != 0).any())
        if bool(((weight + delta.to(weight.dtype)) != weight).any()):
            return True
    return False


def _fused_changes(module: ParamWrapper) -> bool:
    weight = module.get_param()
    deltas = [module.get_delta_weight(adapter) for adapter in module.active_adapters]
    return any(bool(((weight + delta.to(weight.dtype)) != weight).any()) for delta in deltas)


def _merge_changes(module: BaseTunerLayer) -> bool:
    """Whether merging changes the weight, tried on a copy of the layer."""
    trial = copy.deepcopy(module)
    before = trial.get_base_layer().weight.detach().clone()
    trial.merge()
    return not torch.equal(before, trial.get_base_layer().weight)


def _replaced(path: str, module: ModulesToSaveWrapper) -> dict[str, bool]:
    new = module.modules_to_save[module.active_adapters[0]].state_dict()
    old = module.original_module.state_dict()
    return {f"{path}.{name}": not torch.equal(new[name].to(old[name].dtype), old[name]) for name in old}


def _plain(name: str) -> str:
    """Name in the merged model of a tensor or module inside a PEFT model."""
    return name.removeprefix(_PREFIX).replace(".base_layer", "").replace(".original_module", "")


def _is_base(name: str) -> bool:
    return not any(part in name for part in _ADAPTER_PARTS) and ".modules_to_save." not in name


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=16).hexdigest()


def _logits(model: nn.Module, probe_ids: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return model(input_ids=probe_ids.to(device), use_cache=False).logits.float().cpu()


@torch.no_grad()
def verify_merge(probe: MergeProbe, folder: Path) -> MergeReport:
    """Reload the merged model from `folder` and compare it with what was observed before.

    Checked: logits agree within TOLERANCE of the format; every tensor the adapter changes has changed; no other has.
    Raises ModelError.
    """
    merged = reload_model(folder, probe.dtype)
    fresh = {name: _digest(tensor) for name, tensor in merged.state_dict().items()}
    changed = frozenset(name for name, digest in fresh.items() if probe.digests.get(name) != digest)
    _check_changes(probe, _tied(merged, probe.targets), changed, folder)
    logits = _logits(merged, probe.probe_ids)
    if logits.shape != probe.logits.shape or not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"{folder}: the merged model gives logits of shape {list(logits.shape)} or broken values, expected "
            f"{list(probe.logits.shape)}; do not use this folder"
        )
    difference = float((logits - probe.logits).abs().max() / probe.logits.abs().max())
    allowed = TOLERANCE[probe.dtype]
    if difference > allowed:
        raise ModelError(
            f"{folder}: the merged model answers differently from base plus adapter (logits off by {difference:.1e} "
            f"of the largest, allowed {allowed:.0e} in {str(probe.dtype).removeprefix('torch.')}); do not use it"
        )
    return MergeReport(difference, allowed, changed)


def _tied(model: PreTrainedModel, targets: dict[str, bool]) -> dict[str, bool]:
    """Targets, with the twin of a tied embedding added."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not inputs.weight:
        return targets
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is inputs.weight]
    touched = [targets[name] for name in names if name in targets]
    return {**targets, **dict.fromkeys(names, any(touched))} if touched else targets


def _check_changes(probe: MergeProbe, targets: dict[str, bool], changed: frozenset[str], folder: Path) -> None:
    stray = sorted(changed - set(targets))
    if stray:
        raise ModelError(
            f"{folder}: {len(stray)} tensors changed that the adapter does not touch, such as {stray[0]}; "
            "do not use this folder, and check that the base model is the one the adapter was trained on"
        )
    lost = sorted(name for name, must in targets.items() if must and name not in changed)
    if lost:
        raise ModelError(
            f"{folder}: {len(lost)} tensors that the adapter changes are still those of the base, such as {lost[0]}; "
            "the merge was not saved, do not use this folder"
        )
