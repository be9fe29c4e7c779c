"""The export command: one folder that other programs can load, proven to be what the run trained.

Everything is written beside the target, read back and compared with base plus adapter; only then does it get its name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from peft import PeftModel

from llamafactory.config import RunConfig, load_config, refuse_unavailable
from llamafactory.errors import ConfigError, LlamaFactoryError, ModelError
from llamafactory.inference.artefact import complete
from llamafactory.inference.loading import load_renderer
from llamafactory.logs import get_logger
from llamafactory.models.attach import adapter_folders
from llamafactory.models.build import reload_model
from llamafactory.models.hub import is_local
from llamafactory.models.load import LoadedModel, load_model, stored_value_head
from llamafactory.models.merge import TOLERANCE, merge_adapters, observe, verify_merge
from llamafactory.models.packing import Samples, Target
from llamafactory.models.record import BaseRecord, read_record
from llamafactory.models.save import SaveOptions, save_model, save_tokenizer
from llamafactory.models.value_head import save_value_head
from llamafactory.recipes.card import write_model_card
from llamafactory.recipes.modelfile import build_modelfile
from llamafactory.recipes.quantized_export import prepare_packing, refuse_packed, write_quantized
from llamafactory.recipes.upload import upload
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.template import templates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
_OUR_FILES = (
    "*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "Modelfile", "README.md", RECIPE_FILE, "LICENSE*",
    "NOTICE*", "USE_POLICY*", ".cache",
)  # fmt: skip
_PROBES = (
    ("Who are you?", "I am a language model. How can I help?"),
    ("Name three colours and write 1 + 1 in Python.", "Red, green, blue.\n\nprint(1 + 1)"),
    ("你好，你是谁？", "我是一个语言模型。"),
)
_MAX_PROBE_TOKENS = 64


def run_export(source: RunConfig | Mapping[str, object]) -> Path:
    """Merge, convert and write the model; returns the folder.

    Raises ConfigError for an impossible request and ModelError when the written model is not the one that was loaded;
    nothing is left under the target's name then.
    """
    config = complete(source if isinstance(source, RunConfig) else load_config(dict(source), command="export"))
    refuse_unavailable(config, "export")
    target = _target(config)
    bundle, renderer = load_renderer(config)
    samples = prepare_packing(config, bundle.tokenizer)
    loaded = load_model(config, bundle, trainable=False, merge=False)
    refuse_packed(loaded.model, config)
    _refuse_other_base(config, loaded.record)
    head = stored_value_head(config)
    with _staged(target) as folder:
        _write(loaded, bundle.tokenizer, renderer, folder, config, samples=samples)
        if head is not None:
            save_value_head(head.state, folder)
        _write_companions(folder, config, renderer)
    logger.info("Exported to %s", target)
    if config.export.export_hub_model_id:
        repository = config.export.export_hub_model_id
        upload(target, repository, token=config.hub.hf_hub_token, key="export_hub_model_id")
    return target


def _target(config: RunConfig) -> Path:
    target = Path(str(config.export.export_dir)).expanduser().resolve()
    sources = [config.model.model_name_or_path or "", *config.model.adapter_name_or_path]
    if any(is_local(name) and Path(name).expanduser().resolve() == target for name in sources if name):
        raise ConfigError(f"export_dir: '{target}' is the model itself; choose another folder")
    foreign = _foreign_files(target)
    if foreign:
        raise ConfigError(
            f"export_dir: '{target}' is not empty and not an earlier export (it holds {foreign[0]}); "
            "choose another folder, or move its files away"
        )
    return target


def _foreign_files(target: Path) -> list[str]:
    """Names in the target that an export did not write; an empty or missing folder has none."""
    if not target.exists():
        return []
    if not target.is_dir():
        return [f"a file called {target.name}"]
    names = sorted(path.name for path in target.iterdir())
    if not names:
        return []
    if "export_dir" not in _read_recipe(target):
        return names
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _OUR_FILES)]


def _read_recipe(folder: Path) -> Mapping[str, object]:
    try:
        content = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_other_base(config: RunConfig, record: BaseRecord) -> None:
    """Raise ModelError when an adapter was trained on other weights than it would be merged into."""
    for folder in adapter_folders(config):
        before = read_record(folder)
        if before is None or not (before.base_fingerprint and record.base_fingerprint):
            continue
        if before.base_fingerprint != record.base_fingerprint:
            raise ModelError(
                f"model_name_or_path: the adapter {folder} was trained on other weights than these (it names "
                f"{before.base_model}); merging would give a worse model, so give the base it was trained on"
            )


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes the target's name when the block succeeds, and vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".exporting", dir=target.parent))
    try:
        folder = stage / target.name
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(stage / "earlier")
        folder.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(
    loaded: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    folder: Path,
    config: RunConfig,
    *,
    samples: Samples,
) -> None:
    """Merge or quantize, save, read back, compare."""
    probe_ids = _probe_ids(tokenizer, renderer)
    options = SaveOptions(
        max_shard_gb=float(config.export.export_size),
        stop_ids=tuple(renderer.stop_ids),
        chat_template=renderer.to_jinja(),
        padding_side="left",
    )
    if config.export.export_quantization_bit is not None:
        aim = Target(loaded.record, options)
        write_quantized(loaded.model, folder, config, samples=samples, target=aim, probe_ids=probe_ids)
        save_tokenizer(tokenizer, folder, options)
    elif isinstance(loaded.model, PeftModel):
        probe = observe(loaded.model, probe_ids)
        model = merge_adapters(loaded.model)
        save_model(model, tokenizer, folder, record=loaded.record, options=options)
        logger.info(verify_merge(probe, folder).line())
    else:
        save_model(loaded.model, tokenizer, folder, record=loaded.record, options=options)
        _verify_copy(loaded.model, folder, probe_ids)


def _probe_ids(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> torch.Tensor:
    """Token ids [B, T] of short conversations, cut to the shortest."""
    rows = []
    for question, answer in _PROBES:
        prompt = renderer.prompt_ids(Conversation((Message("user", question),)))
        rows.append([*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"]])
    length = min(_MAX_PROBE_TOKENS, *map(len, rows))
    return torch.tensor([row[:length] for row in rows])


@torch.no_grad()
def _verify_copy(model: PreTrainedModel, folder: Path, probe_ids: torch.Tensor) -> None:
    """Read a model without adapters back and compare its logits. Raises ModelError."""
    before = model(input_ids=probe_ids.to(model.device), use_cache=False).logits.float().cpu()
    after = reload_model(folder, model.dtype)(input_ids=probe_ids, use_cache=False).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= TOLERANCE[model.dtype]:  # also true for NaN
        raise ModelError(
            f"export_dir: the written model answers differently from the one that was read (logits differ by "
            f"{difference:.1e} of the largest); nothing was exported, check the disk and try again"
        )
    logger.info("export verified: logits differ by %.2e of the largest", difference)


def _write_companions(folder: Path, config: RunConfig, renderer: Renderer) -> None:
    """Write what lies beside the weights: Modelfile, recipe, card, the base model's licence."""
    _write_modelfile(folder, config, renderer)
    recipe = yaml.safe_dump(_recipe(folder, config), sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    write_model_card(folder, config, {})
    _copy_licence(folder, config)


def _write_modelfile(folder: Path, config: RunConfig, renderer: Renderer) -> None:
    try:
        template = renderer.to_ollama()
    except LlamaFactoryError as error:
        logger.warning("No Modelfile was written, because Ollama cannot have this chat template: %s", error)
        return
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = {**facts.get("text_config", {}), **facts}
    text = build_modelfile(
        template=template,
        system=_default_system(config, renderer),
        stops=renderer.stop_words,
        context_length=facts.get("max_position_embeddings"),
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _recipe(folder: Path, config: RunConfig) -> dict[str, object]:
    """What chat needs to know of the export, and a mark that it is one; no path of this machine, it may be uploaded."""
    wanted = {"split_special_tokens", *type(config.template).model_fields, *type(config.generation).model_fields}
    changed = config.to_yaml_dict(redact=True, only_changed=True)
    scores = {"stage": "rm"} if config.finetuning.stage == "rm" else {}  # scores are no answers: no chat with it
    return {"export_dir": folder.name, **scores, **{key: value for key, value in changed.items() if key in wanted}}


def _default_system(config: RunConfig, renderer: Renderer) -> str:
    if config.template.default_system is not None:
        return config.template.default_system
    template = templates().get(renderer.name)
    return template.default_system if template else ""


def _copy_licence(folder: Path, config: RunConfig) -> None:
    source = Path(config.model.model_name_or_path or "").expanduser()
    if not source.is_dir():
        return
    for pattern in ("LICENSE*", "NOTICE*", "USE_POLICY*"):
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
