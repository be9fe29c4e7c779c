"""Mixture-of-depths: every second layer computes an eighth of the tokens, the others pass it by (arXiv:2404.02258).

A router gives each token x_i of a layer's input one number r_i = w . x_i. In training the k = ceil(0.125 n) tokens with
the largest r_i of a row are chosen (n: its real tokens), attend to each other alone, and become
x_i + r_i f_i(chosen), where f is what the layer adds to its input (equation 1); all others stay x_i.

Choosing the largest looks at later tokens, so a generating model cannot. Of the paper's two ways out (section 3.5) this
is the first: a binary cross-entropy that makes sigmoid(r_i) say whether a token is among the chosen, added to the loss
with the weight ROUTER_LOSS (the paper gives none). In evaluation a token is chosen where r_i > 0.

The layers keep their names; beside them lie `<layer>.router.weight`, and `mixture_of_depths` in config.json names the
layers. There is no cache of keys and values. Knows decoder layers of one shape, and the masks of sdpa and eager.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from llamafactory.config.run import RunConfig
from llamafactory.errors import ModelError
from llamafactory.facts import PACKED, Clash, Facts
from llamafactory.models.families import families_with, family_facts
from llamafactory.models.quantization import quantization_of
from llamafactory.models.safetensors_file import tensor_shapes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CAPACITY = 0.125
ROUTER_LOSS = 0.1
MARK = "mixture_of_depths"
_PER_TOKEN = ("position_ids", "cache_position")

FACTS = Facts(
    "Mixture-of-depths",
    chosen_by=(("mixture_of_depths", ("convert", "load")),),
    clashes=(
        Clash(PACKED, "tokens are chosen among those of one example", "set packing to false"),
        Clash("batch_layout", "tokens are chosen among those of one example", "set it to padded", values=("flat",)),
        Clash("flash_attn", "the chosen tokens need a mask", "use sdpa", allowed=("auto", "disabled", "sdpa")),
        Clash(
            "finetuning_type",
            "new routers must learn, and so must the layers around them",
            "set finetuning_type to full",
            allowed=("full",),
            when=(("mixture_of_depths", ("convert",)),),
        ),
        Clash("stage", "answers cannot be compared or tried", "use stage pt or sft", allowed=("pt", "sft")),
        Clash("use_asft_loss", "a model with new routers is no reference", "remove one of the two"),
        Clash("quantization_bit", "quantized layers hold no router", "remove one of the two"),
        Clash("fsdp", "layers of changing length are not sharded", "train without fsdp"),
        Clash("deepspeed", "layers of changing length are not sharded", "remove one of the two"),
        Clash("use_unsloth", "unsloth brings its own layers", "remove one of the two"),
        Clash("torch_compile", "the number of chosen tokens changes", "remove one of the two"),
    ),
)


def check(config: RunConfig) -> None:
    """Nothing is needed."""


class DepthLayer(nn.Module):
    """Mixed into the class of a decoder layer: routing around the layer's own call (and its checkpointing)."""

    router: nn.Linear
    routing_loss: Tensor | None = None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, H] -> [B, T, H]; leaves the loss of the router in `routing_loss`."""
        if kwargs.get("past_key_values") is not None:
            raise ModelError("mixture_of_depths: tokens that skip layers leave no keys; generate with use_cache=False")
        mask = kwargs.get("attention_mask")
        real = _real_tokens(mask, hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            scores = self.router(hidden_states.to(self.router.weight.dtype)).squeeze(-1).float()
        chosen = choose_tokens(scores.detach(), real, training=self.training)
        self.routing_loss = None
        if self.training:
            self.routing_loss = binary_cross_entropy_with_logits(scores[real], chosen[real].float())
        num_chosen = int(chosen.sum(1).max())
        if num_chosen == 0:
            return hidden_states
        index = torch.sort((~chosen).byte(), dim=1, stable=True).indices[:, :num_chosen]  # in the order of the text
        kwargs |= _gathered(kwargs, index)
        kwargs["attention_mask"] = _chosen_mask(mask, index, hidden_states.dtype)
        inputs = _take(hidden_states, index)
        outputs = super().__call__(inputs, *args, **kwargs)
        weights = torch.where(chosen, scores, 0.0).gather(1, index)[..., None]
        change = (weights * (outputs - inputs)).to(hidden_states.dtype)
        return hidden_states.scatter_add(1, index[..., None].expand_as(change), change)


def choose_tokens(scores: Tensor, real: Tensor, *, training: bool) -> Tensor:
    """[B, T] scores, [B, T] bool -> [B, T] bool: the largest eighth of a row's real tokens; in evaluation those > 0."""
    if not training:
        return real & (scores > 0)
    ranked = scores.masked_fill(~real, -torch.inf).argsort(stable=True, dim=1, descending=True).argsort(1)
    limits = (real.sum(1, keepdim=True) * CAPACITY).ceil()
    return real & (ranked < limits)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """[B or 1, T, ...], [B, k] -> [B, k, ...]."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values.expand(len(index), *values.shape[1:])[rows, index]


def _gathered(kwargs: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """What layers are told about each token, for the chosen ones."""
    found: dict[str, Any] = {
        name: _take(kwargs[name], index) for name in _PER_TOKEN if getattr(kwargs.get(name), "ndim", 0) == 2
    }
    if kwargs.get("position_embeddings") is not None:
        found["position_embeddings"] = tuple(_take(part, index) for part in kwargs["position_embeddings"])
    return found


def _real_tokens(mask: Tensor | None, hidden_states: Tensor) -> Tensor:
    """[B, T] bool: tokens that some position may see, by a mask [B, 1, T, T] of booleans or of numbers to add."""
    batch, length, _ = hidden_states.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
    return _seen(mask).any(dim=-2)[:, 0].expand(batch, length)


def _seen(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def _chosen_mask(mask: Tensor | None, index: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, k, k] in the form of `mask` (booleans for None): who of the chosen sees whom.

    What fills up a row stands behind its chosen tokens, so none of them sees it; it sees itself, to give numbers too.
    """
    size = index.shape[1]
    seen = torch.ones(len(index), 1, size, size, dtype=torch.bool, device=index.device).tril()
    if mask is not None:
        rows = torch.arange(len(index), device=index.device)[:, None, None]
        whole = _seen(mask).expand(len(index), -1, -1, -1)[:, 0]
        seen = seen & whole[rows, index[:, :, None], index[:, None, :]][:, None]
    seen = seen | torch.eye(size, dtype=torch.bool, device=index.device)
    if mask is None or mask.dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def is_marked(hf_config: PretrainedConfig) -> bool:
    """True for the configuration of a converted model."""
    return bool(getattr(hf_config, MARK, None))


def apply_depths(model: PreTrainedModel, wanted: str | None, folder: Path | None, *, trainable: bool) -> str | None:
    """Give a loaded model its routers, in place: new ones (wanted: convert), or those stored in `folder`.

    A marked model gets its routers back whatever is wanted. folder: None for random weights. Returns the note for the
    log, None for a plain model. Raises ModelError.
    """
    marked = is_marked(model.config)
    if wanted is None and not marked:
        return None
    _check(model, wanted, marked=marked, trainable=trainable)
    layers = _decoder_layers(model)
    if not marked:
        numbers = list(range(1, len(layers), 2))
        setattr(model.config, MARK, {"capacity": CAPACITY, "layers": numbers})
    numbers = getattr(model.config, MARK)["layers"]
    for number in numbers:
        _convert(layers[number], std=getattr(model.config, "initializer_range", 0.02))
    if marked and folder is not None:
        _read_routers(model, folder)
    model.register_forward_hook(_report_loss)
    model.router_aux_loss_coef = ROUTER_LOSS
    model.config.use_cache = False
    if model.generation_config is not None:
        model.generation_config.use_cache = False
    return f"mixture of depths: {len(numbers)} of {len(layers)} layers compute {CAPACITY:.1%} of the tokens in training"


def _check(model: PreTrainedModel, wanted: str | None, *, marked: bool, trainable: bool) -> None:
    name = model.config.model_type
    if not family_facts(model.config).depths:
        raise ModelError(
            f"mixture_of_depths: {name} has layers this cannot route around (families that work: "
            f"{', '.join(families_with('depths'))}); remove mixture_of_depths"
        )
    if wanted == "load" and not marked:
        raise ModelError(
            f"mixture_of_depths: load: this {name} was never converted (its config.json has no {MARK}); "
            "write convert to convert it"
        )
    if wanted is None and trainable:
        raise ModelError(
            f"mixture_of_depths: this {name} routes tokens around its layers (its config.json says so); write load to "
            "train it on, so that what cannot stand beside it is refused"
        )
    if quantization_of(model) is not None:
        raise ModelError(
            "mixture_of_depths: quantized layers hold no router; remove quantization_bit, or give the plain model"
        )
    if wanted == "convert" and marked and trainable:
        raise ModelError(f"mixture_of_depths: convert: this {name} has been converted already; write load")
    if not marked and not trainable:
        raise ModelError("mixture_of_depths: convert: new routers must be trained first; use the folder of such a run")
    if model.config._attn_implementation not in {"sdpa", "eager"}:
        raise ModelError(
            f"mixture_of_depths: the attention {model.config._attn_implementation!r} takes no mask of chosen tokens; "
            "set flash_attn to sdpa"
        )


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.get_decoder().layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def _convert(layer: nn.Module, *, std: float) -> None:
    """Turn a decoder layer into one that routes, in place; its own names stay."""
    weight = next(layer.parameters())
    layer.router = nn.Linear(weight.shape[-1], 1, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.normal_(layer.router.weight, std=std)
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (DepthLayer, kind), {})


def _read_routers(model: PreTrainedModel, folder: Path) -> None:
    """Fill the routers from the weight files. Raises ModelError when one is missing."""
    missing = {name: part for name, part in model.named_parameters() if name.endswith(".router.weight")}
    for file in sorted(folder.glob("*.safetensors")):
        found = missing.keys() & tensor_shapes(file).keys()
        if not found:
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in found:
                missing.pop(name).data.copy_(tensors.get_tensor(name))
    if missing:
        raise ModelError(
            f"{folder}: lacks {len(missing)} routers of the mixture-of-depths that its config.json names, such as "
            f"{next(iter(missing))}; use the whole folder of the run"
        )


def _report_loss(model: nn.Module, args: object, output: Any) -> Any:
    """Forward hook: the mean loss of the routers, where a router loss is looked for."""
    losses = [layer.routing_loss for layer in model.modules() if isinstance(layer, DepthLayer)]
    found = [loss for loss in losses if loss is not None]
    if found and not isinstance(output, tuple):
        output.aux_loss = torch.stack(found).mean()
    return output
