"""Finding the folders of a config: as typed from the working directory, else from the folder of the config file.

Looks at the file system only to see whether a folder exists.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llamafactory.config.run import RunConfig

NOT_FOLDERS = ("ONLINE", "REMOTE:")


def find_folders(config: RunConfig) -> RunConfig:
    """Return the config with dataset_dir and media_dir replaced where they exist only next to the config file."""
    if config.source_file is None:
        return config
    folder = config.source_file.parent
    found = {}
    for key in ("dataset_dir", "media_dir"):
        value = getattr(config.data, key)
        if isinstance(value, str) and _is_missing(value) and (folder / value).is_dir():
            found[key] = str(folder / value)
    if not found:
        return config
    return dataclasses.replace(config, data=config.data.model_copy(update=found))


def _is_missing(value: str) -> bool:
    return not value.startswith(NOT_FOLDERS) and "://" not in value and not Path(value).exists()
