"""Where models come from: a local folder, or one of three hubs. The answer is always a local folder that was checked.

Everything later reads that folder alone, so there is one place that downloads, one place that refuses pickled weights
and one place that refuses remote code. Knows no model class.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory import env, parts
from llamafactory.errors import ModelError
from llamafactory.logs import get_logger
from llamafactory.models.remote_code import refuse_code

if TYPE_CHECKING:
    from llamafactory.config.sections.hub import HubConfig

logger = get_logger(__name__)

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md", "LICENSE*")
_UNUSED_FILES = ("original/*", "onnx/*", "consolidated*", "*.onnx", "*.gguf", "*.h5", "*.msgpack")


def fetch(name: str, hub: HubConfig, *, key: str, folder: str | None = None, weights: bool = True) -> Path:
    """Return the local folder of a model or adapter, downloaded if need be, after the safety checks.

    name: folder or hub id. key: the YAML key it came from, for messages. folder: sub-folder inside it. weights: False
    when only configuration and tokenizer are needed. Raises ModelError.
    """
    root = _local_folder(name, key) or _download(name, hub, key=key, folder=folder, weights=weights)
    path = root / folder if folder else root
    if not path.is_dir():
        raise ModelError(f"{key}: {name!r} has no sub-folder {folder!r}; correct adapter_folder or leave it out")
    refuse_code(path, name, trusted=hub.trust_remote_code)
    if weights:
        check_weights(path, name, key=key, allow_pickle=hub.allow_pickle_weights)
    return path


def check_weights(folder: Path, name: str, *, key: str, allow_pickle: bool) -> bool:
    """Return True when the folder holds safetensors, False when only pickled weights that are explicitly allowed.

    Raises ModelError when there are neither.
    """
    if any(folder.glob("*.safetensors")):
        return True
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    pickled = [file for file in pickled if file != "training_args.bin"]
    if not pickled:
        raise ModelError(
            f"{key}: {name!r} holds no weights (expected model.safetensors or adapter_model.safetensors in {folder}); "
            "check the path, or download the model again"
        )
    if not allow_pickle:
        raise ModelError(
            f"{key}: {name!r} holds only pickled weights ({pickled[0]}), which can run code when opened; convert them "
            "to safetensors, or set allow_pickle_weights: true if you trust where they come from"
        )
    logger.warning("allow_pickle_weights: opening the pickled file %s of %s", pickled[0], name)
    return False


def is_local(name: str) -> bool:
    """True when `name` can only mean a path: it exists, or is written like one."""
    return Path(name).expanduser().exists() or _looks_like_path(name)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or Path(name).is_absolute()


def _local_folder(name: str, key: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{key}: {name!r} is a file, but a folder or a hub id is needed; give the folder it lies in")
    if _looks_like_path(name):
        raise ModelError(f"{key}: the folder {name!r} does not exist (seen from {Path.cwd()}); correct the path")
    return None


def _patterns(hub: HubConfig, folder: str | None, *, weights: bool) -> list[str]:
    wanted = list(_TEXT_FILES)
    if weights:
        wanted.append("*.safetensors")
    if weights and hub.allow_pickle_weights:
        wanted.append("*.bin")
    if hub.trust_remote_code:
        wanted.append("*.py")
    return [f"{folder}/{pattern}" for pattern in wanted] if folder else wanted


def _download(name: str, hub: HubConfig, *, key: str, folder: str | None, weights: bool) -> Path:
    patterns = _patterns(hub, folder, weights=weights)
    if env.is_enabled("USE_MODELSCOPE_HUB"):
        return _from_modelscope(name, hub, patterns, key=key)
    if env.is_enabled("USE_OPENMIND_HUB"):
        return _from_openmind(name, hub, patterns, key=key)
    return _from_huggingface(name, hub, patterns, key=key)


def _from_huggingface(name: str, hub: HubConfig, patterns: list[str], *, key: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=hub.model_revision,
            cache_dir=hub.cache_dir,
            token=hub.hf_hub_token,
            allow_patterns=patterns,
            ignore_patterns=list(_UNUSED_FILES),
        )
    except errors.GatedRepoError as error:
        raise ModelError(f"{key}: {name!r} is gated; accept its licence on the hub and set hf_hub_token") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{key}: {name!r} is neither a folder here nor a model on the hub that this token can see; "
            "correct the name, or set hf_hub_token"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{key}: {name!r} has no revision {hub.model_revision!r}; correct model_revision") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{key}: {name!r} is neither a folder here nor a valid hub id; correct the name") from error
    except (OSError, errors.RevisionResolutionError) as error:
        raise ModelError(_unreachable(name, key, error)) from error
    return Path(path)


def _unreachable(name: str, key: str, error: Exception) -> str:
    if env.is_enabled("HF_HUB_OFFLINE") or env.is_enabled("TRANSFORMERS_OFFLINE"):
        return (
            f"{key}: {name!r} is not a folder here and is not in the download cache, and offline mode is on "
            "(HF_HUB_OFFLINE); download it first, or give a local folder"
        )
    return (
        f"{key}: {name!r} is not a folder here and the hub could not deliver it ({type(error).__name__}); "
        "check the network and the name, or give a local folder"
    )


def _from_modelscope(name: str, hub: HubConfig, patterns: list[str], *, key: str) -> Path:
    parts.require("modelscope", "USE_MODELSCOPE_HUB", extra="modelscope")
    from modelscope import snapshot_download

    revision = "master" if hub.model_revision == "main" else hub.model_revision
    options = {"revision": revision, "cache_dir": hub.cache_dir, "token": hub.ms_hub_token}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # the client raises its own, undocumented exceptions
        raise ModelError(
            f"{key}: ModelScope could not deliver {name!r} ({error}); check the name and network"
        ) from error


def _from_openmind(name: str, hub: HubConfig, patterns: list[str], *, key: str) -> Path:
    parts.require("openmind_hub", "USE_OPENMIND_HUB", extra="openmind")
    from openmind_hub import snapshot_download

    options = {"revision": hub.model_revision, "cache_dir": hub.cache_dir, "token": hub.om_hub_token}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # the client raises its own, undocumented exceptions
        raise ModelError(f"{key}: Modelers could not deliver {name!r} ({error}); check the name and network") from error
