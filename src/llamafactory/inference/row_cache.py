"""Keys and values of several answers of different lengths in one tensor, so that one forward pass serves them all.

Row i holds its tokens at columns 0 ... length-1 (aligned left), whatever the others hold; a step writes one column of
each row at the row's own length. Knows the cache interface of transformers; no text and no requests.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

COLUMNS = 256  # columns are added in this step


class RowLayer(CacheLayerMixin):
    """One layer: keys and values [R, heads, C, D], R rows and C columns allocated."""

    is_sliding = False

    def __init__(self, rows: RowCache) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def insert(self, row: int, keys: Tensor, values: Tensor, *, num_rows: int, num_columns: int) -> None:
        """Put keys and values [heads, T, D] of one answer into a row, allocating what is missing."""
        if self.keys is None or self.values is None:
            shape = (num_rows, keys.shape[0], num_columns)
            self.keys = keys.new_zeros((*shape, keys.shape[-1]))
            self.values = values.new_zeros((*shape, values.shape[-1]))
            self.is_initialized = True
        self.grow(num_rows, num_columns)
        self.keys[row, :, : keys.shape[1]] = keys
        self.values[row, :, : values.shape[1]] = values

    def grow(self, num_rows: int, num_columns: int) -> None:
        """Make room for so many rows and columns, keeping what is there; new cells are zero, never NaN."""
        if self.keys is None or self.values is None:
            return
        rows, _, columns, _ = self.keys.shape
        if rows < num_rows or columns < num_columns:
            size = max(rows, num_rows), max(columns, num_columns)
            # Both or none: where memory ends between them, the next attempt must find them alike.
            self.keys, self.values = _enlarged(self.keys, *size), _enlarged(self.values, *size)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first columns of one row over another."""
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one new column of every row, [B, heads, 1, D]; returns all columns in use, [B, heads, width, D]."""
        assert self.keys is not None and self.values is not None
        count, width = key_states.shape[0], self._rows.width
        places = self._rows.lengths.to(key_states.device)
        rows = torch.arange(count, device=key_states.device)
        self.keys[rows, :, places] = key_states[:, :, 0]
        self.values[rows, :, places] = value_states[:, :, 0]
        return self.keys[:count, :, :width], self.values[:count, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.width, 0

    def get_seq_length(self) -> int:
        return self._rows.width - 1

    def get_max_length(self) -> int:
        return -1


def _enlarged(cells: Tensor, num_rows: int, num_columns: int) -> Tensor:
    rows, heads, columns, size = cells.shape
    found = cells.new_zeros((num_rows, heads, num_columns, size))
    found[:rows, :, :columns] = cells
    return found


class RowCache(Cache):
    """A cache for one decoding step after the other. width: columns in use, the longest row after the step."""

    def __init__(self, num_layers: int, *, max_rows: int) -> None:
        self.width = 1
        self.lengths = torch.zeros(0, dtype=torch.long)
        self._max_rows = max_rows
        self._num_columns = COLUMNS
        self._num_rows = 0
        super().__init__(layers=[RowLayer(self) for _ in range(num_layers)])

    def insert(self, row: int, answer: DynamicCache) -> None:
        """Take over what a forward pass over one prompt left in `answer`."""
        self._num_rows = max(self._num_rows, min(self._max_rows, 1 << row.bit_length()))
        self._reserve(answer.get_seq_length() + 1)
        for layer, other in zip(self.layers, answer.layers, strict=True):
            layer.insert(row, other.keys[0], other.values[0], num_rows=self._num_rows, num_columns=self._num_columns)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another one."""
        for layer in self.layers:
            layer.move(source, target, length)

    def begin_step(self, lengths: list[int], device: torch.device) -> None:
        """Prepare for one new token in each of the first rows, which hold `lengths` tokens."""
        self.width = max(lengths) + 1
        self._reserve(self.width)
        for layer in self.layers:
            layer.grow(self._num_rows, self._num_columns)
        self.lengths = torch.tensor(lengths, device=device)

    def _reserve(self, num_columns: int) -> None:
        if num_columns > self._num_columns:
            self._num_columns = -(-num_columns // COLUMNS) * COLUMNS


class RowDecoder:
    """A model over a row cache: prompts one by one and in pieces, then one step for all rows at once."""

    def __init__(self, model: PreTrainedModel, *, max_rows: int) -> None:
        self._model = model
        self._max_rows = max_rows
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._keep_last = {"logits_to_keep": 1} if keeps else {}
        self._cache: RowCache | None = None

    def new_cache(self) -> DynamicCache:
        """An empty cache for one prompt."""
        return DynamicCache(config=self._model.config.get_text_config(decoder=True))

    def read(self, ids: list[int], cache: DynamicCache) -> Tensor:
        """Continue a prompt by `ids`; returns the logits after the last one, [1, V]."""
        start = cache.get_seq_length()
        device = self._model.device
        found = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(start, start + len(ids), device=device).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            **self._keep_last,
        )
        logits: Tensor = found.logits[:, -1]
        return logits

    def insert(self, row: int, cache: DynamicCache) -> None:
        """Give a prompt that was read its row."""
        if self._cache is None:
            self._cache = RowCache(len(cache.layers), max_rows=self._max_rows)
        self._cache.insert(row, cache)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row of `length` tokens over another one."""
        assert self._cache is not None
        self._cache.move(source, target, length)

    def step(self, tokens: list[int], lengths: list[int]) -> Tensor:
        """Feed one token to each of the first rows, which hold `lengths` tokens; returns logits [B, V]."""
        assert self._cache is not None
        device = self._model.device
        self._cache.begin_step(lengths, device)
        positions = self._cache.lengths.unsqueeze(1)
        columns = torch.arange(self._cache.width, device=device)
        found = self._model(
            input_ids=torch.tensor(tokens, device=device).unsqueeze(1),
            attention_mask=None if min(lengths) == max(lengths) else (columns <= positions).long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = found.logits[:, -1]
        return logits

    def clear(self) -> None:
        """Free the memory of all rows."""
        self._cache = None


def why_not_shared(model: PreTrainedModel) -> str:
    """Why rows of this model cannot share a cache; empty when they can.

    Layers must keep plain keys and values, and two rows of unlike length must get the logits they get alone: a mask
    or positions that a model does not heed show there.
    """
    if not model.config.use_cache:
        return "use_kv_cache is false"
    decoder = RowDecoder(model, max_rows=2)
    others = {type(layer).__name__ for layer in decoder.new_cache().layers if type(layer) is not DynamicLayer}
    if others:
        return f"its cache has layers of the kind {', '.join(sorted(others))}"
    try:
        return _compare(decoder, model.config.get_text_config().vocab_size)
    except Exception as error:  # whatever foreign code raises, the model's own `generate` remains
        return f"a trial step failed with {type(error).__name__}"


@torch.inference_mode()
def _compare(decoder: RowDecoder, vocab_size: int) -> str:
    rows = [[number * 7 % vocab_size for number in range(start, end)] for start, end in ((1, 4), (2, 10))]
    alone = torch.cat([decoder.read(ids, decoder.new_cache()) for ids in rows])
    for row, ids in enumerate(rows):
        cache = decoder.new_cache()
        decoder.read(ids[:-1], cache)
        decoder.insert(row, cache)
    shared = decoder.step([ids[-1] for ids in rows], [len(ids) - 1 for ids in rows])
    decoder.clear()
    difference = float((alone - shared).abs().max() / alone.abs().max())
    allowed = max(1e-3, 16 * torch.finfo(alone.dtype).eps)
    return "" if difference <= allowed else f"logits of a shared step differ by {difference:.1g} of their size"
