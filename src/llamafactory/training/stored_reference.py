"""Log-probabilities of the reference policy, computed once and kept beside the tokenized data.

The entry is named by what the numbers depend on: the reference's weights and configuration, the precision, and the
tokens. Then no model is copied, and no batch is scored by the reference again, in any epoch of any run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers import __version__ as transformers_version

from llamafactory.config.run import RunConfig
from llamafactory.data.cache import find, get_or_build
from llamafactory.data.examples import FLOAT_LIST
from llamafactory.data.fingerprint import key_of
from llamafactory.data.pipeline import Datasets
from llamafactory.data.store import open_dataset, write_batches
from llamafactory.errors import ConfigError
from llamafactory.logs import get_logger
from llamafactory.objectives import Batch
from llamafactory.objectives._pairs import PairLoss
from llamafactory.training.batch_terms import KL
from llamafactory.training.reference import Autocast, ReferencePolicy, autocast_of
from llamafactory.training.scoring import TokenScorer

logger = get_logger(__name__)

STAGES = frozenset({"dpo", "kto"})
PAIR_COLUMNS = ("chosen_reference_logps", "rejected_reference_logps")
FEEDBACK_COLUMNS = ("reference_logps", f"{KL}reference_logps")
_ROWS_PER_BATCH = 1000

Values = npt.NDArray[np.float32]
Logps = tuple[Values, ...]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]


def stores_reference(config: RunConfig, datasets: Datasets, args: TrainingArguments, *, free: bool) -> bool:
    """Whether this run computes the reference's log-probabilities beforehand: `precompute_ref_logps`.

    Left out, it does where that saves work. free: the reference costs no memory (adapters switched off). Raises
    ConfigError where it is asked for and cannot be done.
    """
    wanted = config.preference.precompute_ref_logps
    if wanted is False or config.finetuning.stage not in STAGES or not config.uses_reference:
        return False
    sets = [*datasets.evals.values(), *([datasets.train] if datasets.train is not None else [])]
    if not all(isinstance(dataset, Dataset) for dataset in sets) or args.fsdp or args.deepspeed:
        why = "the weights are sharded" if args.fsdp or args.deepspeed else "a stream has no fixed rows to compute for"
        if wanted:
            raise ConfigError(
                f"{config.place('precompute_ref_logps')}: precompute_ref_logps: true, but {why}; remove it to score "
                "with the reference in every step"
            )
        return False
    if wanted or (not free and config.training.do_train):
        return True
    return isinstance(datasets.train, Dataset) and _num_epochs(len(datasets.train), args) > 1


def _num_epochs(num_examples: int, args: TrainingArguments) -> float:
    if args.max_steps <= 0:
        return args.num_train_epochs
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * size / max(num_examples, 1)


@dataclass(frozen=True)
class ReferenceStore:
    """Computes and keeps log-probabilities of one reference.

    weights: digest of its weights. collate: rows -> batch. precision: context of the forward. batch_size: rows scored
    at once. shared: all machines see
    one cache. overwrite: compute again.
    """

    reference: ReferencePolicy
    weights: str
    scorer: TokenScorer
    collate: Collate
    precision: Autocast
    device: torch.device
    batch_size: int
    rank: int = 0
    world_size: int = 1
    shared: bool = False
    overwrite: bool = False

    def add_to(self, datasets: Datasets) -> Datasets:
        """The same data sets with columns of log-probabilities, one number for each supervised token."""
        evals = {name: self._add(dataset) for name, dataset in datasets.evals.items()}
        train = self._add(datasets.train) if isinstance(datasets.train, Dataset) else datasets.train
        return replace(datasets, train=train, evals=evals)

    def _add(self, dataset: Dataset) -> Dataset:
        tokens = digest_of_rows(dataset)
        facts = {"reference": self.weights, "tokens": tokens, "precision": repr(self.precision)}
        key = key_of({**facts, "transformers": transformers_version})
        if self.overwrite or not all(gather_object([find(key) is not None])):
            values = self._compute(dataset)
            get_or_build(key, lambda folder: _write(folder, dataset, values), overwrite=True, shared=self.shared)
        found = find(key)
        assert found is not None, "the entry was just written"
        return concatenate_datasets([dataset, open_dataset(found.folder)], axis=1)

    def _compute(self, dataset: Dataset) -> list[Logps]:
        """Values of every row, in the order of the rows, from all processes."""
        logger.info("computing log-probabilities of the reference for %d rows, once", len(dataset))
        lengths = dataset["length"][:]
        order = sorted(range(len(dataset)), key=lambda index: -lengths[index])
        mine = order[self.rank :: self.world_size]
        chunks = [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]
        found = [pair for chunk in chunks for pair in zip(chunk, self._score(dataset, chunk), strict=True)]
        values: list[Logps] = [()] * len(dataset)
        for index, logps in gather_object(found):
            values[index] = logps
        return values

    @torch.no_grad()
    def _score(self, dataset: Dataset, indices: Sequence[int]) -> list[Logps]:
        rows = dataset.with_format(None)[list(indices)]
        examples = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        batch = {name: value.to(self.device) for name, value in self.collate(examples).items()}
        with self.reference.active() as model, self.precision():
            columns = [column for part in _parts(batch) for column in self._columns(model, part, len(indices))]
        return list(zip(*columns, strict=True))

    def _columns(self, model: nn.Module, batch: Batch, num_rows: int) -> list[list[Values]]:
        """Values of all sequences; a pair has two of them, all chosen before all rejected."""
        scores = self.scorer(model, batch)
        num_sequences = num_rows if "desirable" in batch else 2 * num_rows
        lengths = torch.bincount(scores.rows, minlength=num_sequences).cpu().numpy()
        sequences = np.split(scores.logps.cpu().numpy(), lengths.cumsum()[:-1])
        return [sequences[start : start + num_rows] for start in range(0, num_sequences, num_rows)]


def build_store(
    config: RunConfig,
    args: TrainingArguments,
    reference: ReferencePolicy,
    model: PreTrainedModel | PeftModel,
    collate: Collate,
) -> ReferenceStore:
    """The store of a run. model: the one the reference computes with."""
    return ReferenceStore(
        reference=reference,
        weights=digest_of_model(model),
        scorer=TokenScorer(PairLoss(beta=0.0)),
        collate=collate,
        precision=autocast_of(args),
        device=args.device,
        batch_size=args.per_device_eval_batch_size,
        rank=args.process_index,
        world_size=args.world_size,
        shared=config.data.data_shared_file_system,
        overwrite=config.data.overwrite_cache,
    )


def _parts(batch: Batch) -> list[Batch]:
    """The batch, and the mismatched answers in it as another."""
    own = {name: value for name, value in batch.items() if not name.startswith(KL)}
    if len(own) == len(batch):
        return [own]
    other = {name.removeprefix(KL): value for name, value in batch.items() if name.startswith(KL)}
    return [own, {**other, "desirable": own["desirable"]}]


def _write(folder: Path, dataset: Dataset, values: Sequence[Logps]) -> Mapping[str, object]:
    names = FEEDBACK_COLUMNS if "desirable" in dataset.column_names else PAIR_COLUMNS
    schema = pa.schema(dict.fromkeys(names, FLOAT_LIST))
    starts = range(0, len(values), _ROWS_PER_BATCH)
    batches = (
        pa.record_batch([pa.array(column, FLOAT_LIST) for column in zip(*rows, strict=True)], schema=schema)
        for rows in (values[start : start + _ROWS_PER_BATCH] for start in starts)
    )
    write_batches(folder, schema, batches)
    return {}


def digest_of_rows(dataset: Dataset) -> str:
    """Digest of the token columns of all rows, in order."""
    names = [name for name in dataset.column_names if name.endswith(("input_ids", "labels"))]
    digest = hashlib.sha256(repr(names).encode())
    for table in dataset.select_columns(names).with_format("arrow").iter(_ROWS_PER_BATCH):
        for name in names:
            column = table[name].combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                digest.update(part.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()


def digest_of_model(model: PreTrainedModel | PeftModel) -> str:
    """Digest of the weights the reference computes with, adapters that learn left out, and of its configuration."""
    adapted = any(parameter.requires_grad for parameter in model.parameters()) and isinstance(model, PeftModel)
    config: dict[str, object] = model.config.to_dict()
    for name in ("_name_or_path", "use_cache", "transformers_version"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(str(model.config.get_text_config()._attn_implementation).encode())
    for name, parameter in sorted(model.named_parameters()):
        if not (adapted and parameter.requires_grad):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(memoryview(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
