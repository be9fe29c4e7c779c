"""How repositories are fetched and what a repository may do to this machine. Knows no model class."""

from typing import ClassVar

from llamafactory.config.section import Section, option


class HubConfig(Section):
    """Download cache, revision, tokens, and trust."""

    title: ClassVar[str] = "Hub and trust"

    cache_dir: str | None = option(None, "Folder for downloaded files; the hub client's own cache by default.")
    model_revision: str = option("main", "Branch, tag or commit of the model repository.")
    hf_hub_token: str | None = option(None, "Access token of the Hugging Face hub.", secret=True)
    ms_hub_token: str | None = option(None, "Access token of the ModelScope hub.", secret=True)
    om_hub_token: str | None = option(None, "Access token of the Modelers hub.", secret=True)
    trust_remote_code: bool = option(False, "Run Python code that comes with a repository; off keeps it unread.")
    allow_pickle_weights: bool = option(
        False,
        "Read weights stored as pickle (.bin, .pt), which can run code while loading; safetensors needs no leave.",
    )
