"""What a configuration asks of the data room: which sets, where from, which kind, how masked and cut.

Turns options into the values the other modules take; reads the registry but no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafactory.config.run import RunConfig
from llamafactory.data.catalog import REGISTRY_FILE, DatasetEntry, load_entries, read_registry
from llamafactory.data.encode import Limits
from llamafactory.data.kinds import Kind, check_kind, kind_of
from llamafactory.data.sources import SOURCES, Access, Rows
from llamafactory.errors import DataError


@dataclass(frozen=True)
class Plan:
    """The data sets of a run and how their rows become examples."""

    train: tuple[DatasetEntry, ...]
    evals: tuple[DatasetEntry, ...]
    kind: Kind
    limits: Limits
    access: Access
    cutoff_len: int
    packs: bool


def make_plan(config: RunConfig) -> Plan:
    """Read the registry and check that every named data set fits the stage. Raises DataError."""
    data = config.data
    kind = kind_of(config.finetuning.stage)
    entries, access = find_entries(config, (*data.dataset, *data.eval_dataset))
    for entry in entries:
        check_kind(
            kind,
            name=entry.name,
            ranking=entry.ranking,
            has_feedback=entry.columns.kto_tag is not None,
            stage=config.finetuning.stage,
        )
    packs = config.packs and kind in {"text", "conversation"}
    limits = Limits(
        limit=None if kind == "text" and packs else data.cutoff_len,
        truncation=data.truncation,
        train_on_prompt=data.train_on_prompt,
        mask_history=data.mask_history,
    )
    num_train = len(data.dataset)
    return Plan(
        tuple(entries[:num_train]),
        tuple(entries[num_train:]),
        kind,
        limits,
        access,
        data.cutoff_len,
        packs,
    )


def find_entries(config: RunConfig, names: Sequence[str]) -> tuple[Sequence[DatasetEntry], Access]:
    """The registry entries of the named data sets, whatever the stage, and how to reach their rows."""
    folder = _folder(config)
    where, registry = _registry(config, folder) if names else ("", {})
    media_dir = Path(config.data.media_dir) if config.data.media_dir else folder
    return load_entries(names, registry, where=where, media_dir=media_dir), _access(config, folder)


def open_rows(entry: DatasetEntry, access: Access) -> Rows:
    """Find the rows of an entry through its source. Raises DataError when they cannot be reached."""
    return SOURCES.load(entry.source).load(entry, access)


def _folder(config: RunConfig) -> Path:
    """The folder that file names start from; the working directory where dataset_dir names none."""
    given = config.data.dataset_dir
    if isinstance(given, Mapping) or given == "ONLINE" or given.startswith("REMOTE:"):
        return Path()
    return Path(given).expanduser()


def _registry(config: RunConfig, folder: Path) -> tuple[str, Mapping[str, object] | None]:
    """The registry and its name for messages."""
    given = config.data.dataset_dir
    if isinstance(given, Mapping):
        return "dataset_dir", given
    if given == "ONLINE":
        return "dataset_dir: ONLINE", None
    if given.startswith("REMOTE:"):
        path = _download_registry(given.removeprefix("REMOTE:"), config)
        return f"{given}/{REGISTRY_FILE}", read_registry(path)
    return str(folder / REGISTRY_FILE), read_registry(folder / REGISTRY_FILE)


def _download_registry(repository: str, config: RunConfig) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(
            repository,
            REGISTRY_FILE,
            repo_type="dataset",
            cache_dir=config.hub.cache_dir,
            token=config.hub.hf_hub_token,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise DataError(
            f"dataset_dir: REMOTE:{repository}: cannot fetch {REGISTRY_FILE} from that data set repository "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the id, the network and hf_hub_token"
        ) from error
    return Path(path)


def _access(config: RunConfig, folder: Path) -> Access:
    hub = config.hub
    return Access(
        dataset_dir=folder,
        cache_dir=Path(hub.cache_dir) if hub.cache_dir else None,
        hf_token=hub.hf_hub_token,
        ms_token=hub.ms_hub_token,
        om_token=hub.om_hub_token,
        streaming=config.data.streaming,
    )
