"""A value head: one number from a hidden state, for reward models and for the critic of PPO.

It lives on the outermost model as `model.v_head`, so that optimizers, wrappers and device moves treat it as any other
layer, and in a file of its own beside the weights, so that the weights stay those of a plain language model. Knows no
stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import load_state_dict

from llamafactory.errors import CheckpointError, ModelError
from llamafactory.models.safetensors_file import tensor_shapes

VALUE_HEAD_FILE = "value_head.safetensors"
PICKLED_VALUE_HEAD_FILE = "value_head.bin"
_NAME = "v_head"


@dataclass(frozen=True, slots=True)
class StoredHead:
    """The tensors of a head, and the folder they were read from."""

    folder: Path
    state: dict[str, Tensor]


class ValueHead(nn.Module):
    """[..., H] -> [...] fp32: w.h + b, computed in the head's own format (fp32) also under autocast.

    w is drawn from N(0, 1/(H+1)) and b is 0 (https://arxiv.org/abs/2009.01325, appendix B), from torch's global random
    state. dropout: share of the hidden state's values that are dropped in training.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1, dtype=torch.float32)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.summary.weight, std=(hidden_size + 1) ** -0.5)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.summary.weight
        with torch.autocast(hidden.device.type, enabled=False):
            values = functional.linear(self.dropout(hidden.to(weight.dtype)), weight, self.summary.bias)
        return values.squeeze(-1).float()


def value_head_of(model: nn.Module) -> ValueHead | None:
    """The head of an unwrapped model, None without one."""
    head = dict(model.named_children()).get(_NAME)
    return head if isinstance(head, ValueHead) else None


def required_value_head(model: nn.Module) -> ValueHead:
    """The head of an unwrapped model. Raises ModelError without one."""
    head = value_head_of(model)
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no value head, and this stage needs one; load the model with its value head"
        )
    return head


def attach_value_head(model: nn.Module, stored: StoredHead | None = None, *, trainable: bool) -> ValueHead:
    """Give `model` (in place) the stored head, or a new one.

    Dropout only where the model's configuration asks for it with `summary_dropout_prob`. Raises ModelError for a head
    of another width.
    """
    projection = model.get_output_embeddings()  # type: ignore[operator]
    width = getattr(projection, "in_features", None)
    if width is None:
        raise ModelError(
            f"{type(model).__name__} has no linear output embedding, so a value head finds no hidden states in it; "
            "use a causal language model"
        )
    dropout = getattr(model.config.get_text_config(), "summary_dropout_prob", None)  # type: ignore[union-attr, operator]
    head = ValueHead(width, dropout or 0.0)
    if stored is not None:
        _fill(head, stored)
    device = next(projection.parameters()).device
    head.to("cpu" if device.type == "meta" else device).requires_grad_(trainable).train(trainable)
    setattr(model, _NAME, head)
    return head


def freeze_for_ranking(model: nn.Module) -> None:
    """Freeze, in place, what comparisons of scores cannot teach.

    The vocabulary projection never runs; a weight it shares with the input embedding goes on learning. The head's bias
    moves all scores alike, so its gradient is rounding noise, which Adam would turn into steps of full size.
    """
    projection, inputs = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    shared = {id(parameter) for parameter in inputs.parameters()}
    for parameter in projection.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    required_value_head(model).summary.bias.requires_grad_(False)


def _fill(head: ValueHead, stored: StoredHead) -> None:
    plain = {name.removeprefix(f"{_NAME}."): value for name, value in stored.state.items()}
    wanted, found = ({name: list(value.shape) for name, value in part.items()} for part in (head.state_dict(), plain))
    if wanted != found:
        raise ModelError(
            f"{stored.folder / VALUE_HEAD_FILE}: this model needs a value head with {wanted}, found {found}; give the "
            "model the head was trained with"
        )
    head.load_state_dict(plain)


@contextmanager
def detached(model: nn.Module) -> Iterator[ValueHead | None]:
    """The model without its head inside the block, for whatever saves, loads or counts the weights of a plain model."""
    head = value_head_of(model)
    if head is not None:
        delattr(model, _NAME)
    try:
        yield head
    finally:
        if head is not None:
            setattr(model, _NAME, head)


@contextmanager
def exchanged(model: nn.Module, head: ValueHead) -> Iterator[None]:
    """The model with another head inside the block."""
    with detached(model):
        setattr(model, _NAME, head)
        yield


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the model, and those of its head, under the names of the head's file."""
    rest = {name: value for name, value in state.items() if not name.startswith(f"{_NAME}.")}
    return rest, {name: value for name, value in state.items() if name not in rest}


def head_state(head: ValueHead) -> dict[str, Tensor]:
    """The head's tensors under the names of its file."""
    return {f"{_NAME}.{name}": value for name, value in head.state_dict().items()}


def save_value_head(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the tensors of a head, as `head_state` or `split_state` give them; nothing when there are none."""
    if state:
        owned = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        save_file(owned, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})


def restore_value_head(head: ValueHead, folder: Path) -> None:
    """Copy the head saved in a checkpoint into the live one. Raises CheckpointError without a file."""
    stored = read_value_head(folder)
    if stored is None:
        raise CheckpointError(
            f"{folder}: {VALUE_HEAD_FILE} is missing, but this run trains a value head; resume from a checkpoint of "
            "the same stage"
        )
    _fill(head, stored)


def read_value_head(folder: Path, *, allow_pickle: bool = False) -> StoredHead | None:
    """The head stored in a folder, None without one.

    allow_pickle: also read a pickled head of an earlier release. Raises ModelError for a pickled head that is not
    allowed, CheckpointError for a damaged file.
    """
    file, pickled = folder / VALUE_HEAD_FILE, folder / PICKLED_VALUE_HEAD_FILE
    if file.is_file():
        tensor_shapes(file)  # a damaged file is told by name
        return StoredHead(folder, load_file(file))
    if not pickled.is_file():
        return None
    if not allow_pickle:
        raise ModelError(
            f"{pickled}: the value head is pickled, which can run code when opened; convert it to safetensors, or set "
            "allow_pickle_weights: true if you trust where it comes from"
        )
    try:
        return StoredHead(folder, load_state_dict(pickled))
    except Exception as error:  # a hostile or damaged pickle fails in many ways
        raise ModelError(
            f"{pickled}: expected pickled tensors of a value head, found {type(error).__name__}; convert it to "
            "safetensors where it was made"
        ) from error


def last_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Index [S] of the last token of every sequence into the flattened [B*T] positions, in both layouts.

    Padded: one sequence a row, padding on either side. Flat: position ids restart at 0 with every sequence.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    width = ids.shape[1]
    if mask is None and batch.get("position_ids") is not None:
        starts = (batch["position_ids"].flatten() == 0).nonzero().squeeze(-1)
        end = torch.tensor([ids.numel()], device=ids.device)
        return torch.cat([starts[1:], end]) - 1
    rows = torch.arange(len(ids), device=ids.device) * width
    if mask is None:
        return rows + width - 1
    return rows + width - 1 - mask.flip(1).long().argmax(1)


class _ValueProjection(nn.Module):
    """Stands in for the vocabulary projection: the head on chosen positions, [B, T, H] -> [1, S, 1]."""

    def __init__(self, head: ValueHead, index: Tensor) -> None:
        super().__init__()
        self.head, self.index = head, index
        self.values: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        kept = states.reshape(-1, states.shape[-1]).index_select(0, self.index.to(states.device))
        self.values = self.head(kept)
        return self.values[None, :, None]


def sequence_values(
    model: nn.Module, inputs: Mapping[str, Tensor], index: Tensor, core: nn.Module | None = None
) -> tuple[Tensor, object]:
    """Value [S] fp32 at the last token of every sequence, and the model's whole output.

    index: [S] of those tokens into the flattened [B*T] positions.

    The model's own forward runs, with the head in the place of its vocabulary projection, so that wrappers around it
    (PEFT, data-parallel, sharded) keep working and no logits exist. core: the model inside such wrappers. Raises
    ModelError for a model without a head, or one that cannot be used so.
    """
    core = model if core is None else core
    stand_in = _ValueProjection(required_value_head(core), index)
    with _in_place_of_projection(core, stand_in):
        output = model(**inputs, use_cache=False, return_dict=True)
    if stand_in.values is None:
        raise ModelError(
            f"{type(core).__name__} does not pass its hidden states through its output embedding, so it cannot be a "
            "reward model"
        )
    return stand_in.values, output


@contextmanager
def _in_place_of_projection(core: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    projection = core.get_output_embeddings()  # type: ignore[operator]
    places = [(parent, name) for parent in core.modules() for name, child in parent.named_children()
              if child is projection]  # fmt: skip
    for parent, name in places:
        setattr(parent, name, stand_in)
    try:
        yield
    finally:
        for parent, name in places:
            setattr(parent, name, projection)
