"""Encoded examples and their table form: the columns of a tokenized set.

text, conversation: input_ids, labels, weights. preference: chosen_* and rejected_*. feedback: also desirable, and kl_*,
the prompt with the answer of the example before it. prompt: input_ids is the prompt, labels the reference answer. All:
length, source. Knows no renderer.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from llamafactory.data.kinds import Kind
from llamafactory.data.report import Report
from llamafactory.rendering.tokens import IGNORE_INDEX

INT_LIST = pa.list_(pa.int32())
FLOAT_LIST = pa.list_(pa.float32())


@dataclass(slots=True)
class Example:
    """One kept example. columns: token lists by column name. weights: None when every supervised token weighs 1.

    The columns kl_* repeat tokens of other examples and count in none of the numbers.
    """

    source: str
    columns: dict[str, list[int]]
    weights: list[float] | None = None
    desirable: bool | None = None
    truncated: bool = False

    @property
    def length(self) -> int:
        """Number of tokens; of the longer side of a preference."""
        return max(len(ids) for ids in self._own("input_ids"))

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for ids in self._own("input_ids"))

    @property
    def num_supervised(self) -> int:
        return sum(len(ids) - ids.count(IGNORE_INDEX) for ids in self._own("labels"))

    def _own(self, ending: str) -> list[list[int]]:
        return [ids for name, ids in self.columns.items() if name.endswith(ending) and not name.startswith("kl_")]


@dataclass(slots=True)
class Chunk:
    """What one chunk of rows became."""

    examples: list[Example] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def token_columns(kind: Kind) -> tuple[str, ...]:
    """Names of the token list columns of a kind."""
    if kind == "preference":
        return ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
    if kind == "feedback":
        return ("input_ids", "labels", "kl_input_ids", "kl_labels")
    return ("input_ids", "labels")


def schema_of(kind: Kind) -> pa.Schema:
    """Columns and types of a kind's table."""
    columns: dict[str, pa.DataType] = dict.fromkeys(token_columns(kind), INT_LIST)
    if kind in {"conversation", "feedback"}:
        columns["weights"] = FLOAT_LIST
    if kind == "feedback":
        columns["desirable"] = pa.bool_()
    return pa.schema({**columns, "length": pa.int32(), "source": pa.string()})


def to_batch(examples: Sequence[Example], kind: Kind) -> pa.RecordBatch:
    """Turn examples into one record batch of `schema_of(kind)`."""
    schema = schema_of(kind)
    columns: dict[str, pa.Array] = {
        name: int_lists([example.columns[name] for example in examples]) for name in token_columns(kind)
    }
    columns["weights"] = pa.array([example.weights for example in examples], FLOAT_LIST)
    columns["desirable"] = pa.array([bool(example.desirable) for example in examples], pa.bool_())
    columns["length"] = pa.array([example.length for example in examples], pa.int32())
    columns["source"] = pa.array([example.source for example in examples], pa.string())
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def int_lists(lists: Sequence[Sequence[int]]) -> pa.ListArray:
    """Build a list<int32> array from token lists without a Python object per token."""
    flat = array("i")
    offsets = [0]
    for values in lists:
        flat.extend(values)
        offsets.append(len(flat))
    values = pa.array(np.array(flat, dtype=np.int32))
    return pa.ListArray.from_arrays(pa.array(np.array(offsets, dtype=np.int32)), values, type=INT_LIST)
