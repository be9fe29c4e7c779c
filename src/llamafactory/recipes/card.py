"""The model card: README.md with the metadata hubs read, the settings of the run and its results.

Names come from configurations and data files, so everything is quoted before it enters YAML or Markdown; local folders
are named without their path. Knows no model class and no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from llamafactory.config import RunConfig
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.errors import LlamaFactoryError
from llamafactory.models.record import read_record

CARD_FILE = "README.md"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_METHODS = {
    "lora": "LoRA",
    "oft": "OFT",
    "vera": "VeRA",
    "ia3": "IA3",
    "loha": "LoHa",
    "lokr": "LoKr",
    "freeze": "partial",
    "full": "full",
}
_STAGES = {
    "pt": "pre-training",
    "sft": "supervised fine-tuning",
    "rm": "reward modelling",
    "ppo": "PPO",
    "dpo": "DPO",
    "kto": "KTO",
}
# Settings a reader wants to see, with the section that holds them.
_SETTINGS = {
    "training": (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
        "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "label_smoothing_factor", "neftune_noise_alpha",
        "seed",
    ),
    "data": ("cutoff_len", "truncation", "packing", "max_samples"),
    "lora": ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora"),
    "template": ("template", "default_system"),
}  # fmt: skip


def write_model_card(
    folder: Path, config: RunConfig, metrics: Mapping[str, object], datasets: Sequence[str] = ()
) -> Path:
    """Write `folder/README.md` and return its path.

    metrics: final values by name; only numbers are shown. datasets: names as the run knew them; those that are hub ids
    also enter the metadata.
    """
    parts = [_front_matter(config, datasets), _introduction(folder, config, datasets)]
    if config.command != "export":
        parts.append(_section("Settings", _table(("setting", "value"), _settings(folder, config))))
    numbers = [(name, f"{value:.6g}") for name, value in sorted(metrics.items()) if _is_number(value)]
    if numbers:
        parts.append(_section("Results", _table(("metric", "value"), numbers)))
    parts.append(_usage(folder, config))
    path = folder / CARD_FILE
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def read_metadata(folder: Path) -> dict[str, object]:
    """The metadata of the model card in `folder`; empty when there is none or it cannot be read."""
    path = folder / CARD_FILE
    try:
        found = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
        content = yaml.safe_load(found.group(1)) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def display_name(name: str | None) -> str:
    """A model's name without the path of a local folder."""
    if not name:
        return "unknown"
    return name if _is_hub_id(name) else Path(name).name


def _front_matter(config: RunConfig, datasets: Sequence[str]) -> str:
    name = config.model.model_name_or_path
    base = read_metadata(_folder_of(name)) if name else {}
    library = "peft" if _is_adapter(config) else "transformers"
    content: dict[str, object] = {"library_name": library, "license": str(base.get("license", "other"))}
    content |= {key: str(base[key]) for key in ("license_name", "license_link") if key in base}
    if name and _is_hub_id(name):
        content["base_model"] = name
    elif isinstance(base.get("base_model"), str):
        content["base_model"] = base["base_model"]
    content["tags"] = ["llama-factory", config.finetuning.finetuning_type, config.finetuning.stage]
    known = [name for name in datasets if _is_hub_id(name)]
    if known:
        content["datasets"] = known
    if config.finetuning.stage != "rm":
        content["pipeline_tag"] = "text-generation"
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _introduction(folder: Path, config: RunConfig, datasets: Sequence[str]) -> str:
    base = _quoted(display_name(config.model.model_name_or_path))
    if config.command == "export":
        adapters = ", ".join(_quoted(display_name(name)) for name in config.model.adapter_name_or_path)
        made = f"{base} with the adapters {adapters} merged into it" if adapters else base
        return f"# {_text(folder.name)}\n\nThis is {made}.\n"
    stage, method = _STAGES.get(config.finetuning.stage, config.finetuning.stage), config.finetuning.finetuning_type
    data = ", ".join(_quoted(display_name(name)) for name in datasets) or "unnamed data"
    return f"# {_text(folder.name)}\n\n{base} after {stage} ({_METHODS.get(method, method)}) on {data}.\n"


def _settings(folder: Path, config: RunConfig) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [
        ("stage", config.finetuning.stage),
        ("finetuning_type", config.finetuning.finetuning_type),
    ]
    rows.append(("precision", config.precision))
    record = read_record(folder)
    if record is not None and record.quantization:
        rows.append(("base weights in training", record.quantization))
    for section, names in _SETTINGS.items():
        if section == "lora" and config.finetuning.finetuning_type != "lora":
            continue
        values = getattr(config, section)
        rows += [(name, _value(getattr(values, name))) for name in names if getattr(values, name) not in (None, ())]
    return rows


def _usage(folder: Path, config: RunConfig) -> str:
    if config.finetuning.stage == "rm":
        return ""
    return _section("Chat", f"```bash\nllamafactory-cli chat {_shell_word(folder.name)}\n```\n")


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {_quoted(value)} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _quoted(text: str) -> str:
    """Inline code that holds any text: no Markdown, no HTML, no table cell is broken by it."""
    flat = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`"


def _text(name: str) -> str:
    return re.sub(r"[^\w .-]", "_", name) or "model"


def _shell_word(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) and not name.startswith("-") else "OUTPUT_DIR"


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _is_adapter(config: RunConfig) -> bool:
    return config.command != "export" and config.finetuning.finetuning_type in ADAPTER_METHODS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _folder_of(name: str) -> Path:
    """Where a model's own card lies: its folder, or its snapshot in the hub cache."""
    if not _is_hub_id(name):
        return Path(name).expanduser()
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CARD_FILE)
    except (ValueError, LlamaFactoryError):
        found = None
    return Path(found).parent if isinstance(found, str) else Path("/nonexistent")
