"""Upload a finished folder to a repository of the Hugging Face hub. Knows no model.

The hub client decides where the hub is (HF_ENDPOINT) and finds a stored login when no token is given.
"""

from __future__ import annotations

from pathlib import Path

from llamafactory.errors import ModelError, first_line
from llamafactory.logs import get_logger
from llamafactory.models.compat import transport_errors

logger = get_logger(__name__)

# Optimizer state, logs and reports of a training run stay at home.
_AT_HOME = ("checkpoint-*", "previous_run-*", "rank_logs*", "error.json", "*.tmp", ".*")


def upload(folder: Path, repository: str, *, token: str | None, key: str, private: bool | None = None) -> str:
    """Upload the files of `folder` to the model repository, creating it if need be; returns its address.

    key: the YAML key that named the repository, for messages. private: for a new repository; None is the hub's default.
    Raises ModelError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError, *transport_errors())
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Upload model",
            ignore_patterns=[pattern for name in _AT_HOME for pattern in (name, f"{name}/*")],
        )
    except HFValidationError as error:
        raise ModelError(f"{key}: {repository!r} is not a repository name; write it as owner/name") from error
    except unreachable as error:
        raise ModelError(
            f"{key}: the upload of '{folder}' to {repository!r} failed ({first_line(error)}); the folder is complete, "
            "check the token (hf_hub_token) and the network and upload it again"
        ) from error
    logger.info("Uploaded %s to %s", folder, made)
    return str(made)
