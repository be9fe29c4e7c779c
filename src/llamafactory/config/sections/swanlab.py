"""Tracking with SwanLab. Knows no trainer."""

from typing import ClassVar, Literal

from llamafactory.config.section import Section, option


class SwanlabConfig(Section):
    """Where SwanLab records a run."""

    title: ClassVar[str] = "SwanLab"

    use_swanlab: bool = option(False, "Record the run with SwanLab.")
    swanlab_project: str | None = option("llamafactory", "Project the run belongs to.")
    swanlab_workspace: str | None = option(None, "Workspace of the project.")
    swanlab_run_name: str | None = option(None, "Name of the run.")
    swanlab_mode: Literal["cloud", "local"] = option("cloud", "Send records to the service or keep them here.")
    swanlab_api_key: str | None = option(None, "Key of the service.", secret=True)
    swanlab_logdir: str | None = option(None, "Folder for local records.")
    swanlab_lark_webhook_url: str | None = option(None, "Lark address to notify at the end.", secret=True)
    swanlab_lark_secret: str | None = option(None, "Secret of that address.", secret=True)
