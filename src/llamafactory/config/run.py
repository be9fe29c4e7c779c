"""`RunConfig`: every section of one run, plus where each value came from.

Knows the sections by name and the few answers that need two of them. Reads no file; `load.load_config` builds it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_type_hints

from llamafactory.config.section import Section
from llamafactory.config.sections.apollo import ApolloConfig
from llamafactory.config.sections.badam import BadamConfig
from llamafactory.config.sections.compute import ComputeConfig
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.evaluation import EvaluationConfig
from llamafactory.config.sections.export import ExportConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.fp8 import Fp8Config
from llamafactory.config.sections.freeze import FreezeConfig
from llamafactory.config.sections.galore import GaloreConfig
from llamafactory.config.sections.generation import GenerationConfig
from llamafactory.config.sections.hub import HubConfig
from llamafactory.config.sections.lora import LoraConfig
from llamafactory.config.sections.loss import LossConfig
from llamafactory.config.sections.media import MediaConfig
from llamafactory.config.sections.model import ModelConfig
from llamafactory.config.sections.oft import OftConfig
from llamafactory.config.sections.optimizer import OptimizerConfig
from llamafactory.config.sections.ppo import PpoConfig
from llamafactory.config.sections.preference import PreferenceConfig
from llamafactory.config.sections.profiler import ProfilerConfig
from llamafactory.config.sections.quantization import QuantizationConfig
from llamafactory.config.sections.ray import RayConfig
from llamafactory.config.sections.sglang import SglangConfig
from llamafactory.config.sections.swanlab import SwanlabConfig
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.config.sections.training import TrainingConfig
from llamafactory.config.sections.vllm import VllmConfig
from llamafactory.config.sections.vocab import VocabConfig

_SECRET_KEY = re.compile(r"(^|[_-])(token|password|secret|api_?key|access_?key)$", re.IGNORECASE)

Precision = Literal["fp32", "bf16", "fp16", "pure_bf16"]


@dataclass(frozen=True)
class RunConfig:
    """All options of one run, resolved and frozen.

    Two configs are equal when their sections are; command, source_file, origins and notices say where they came from.
    origins: key -> place, for keys that were given. notices: sentences about translated or ineffective keys.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    oft: OftConfig = field(default_factory=OftConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    galore: GaloreConfig = field(default_factory=GaloreConfig)
    apollo: ApolloConfig = field(default_factory=ApolloConfig)
    badam: BadamConfig = field(default_factory=BadamConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    sglang: SglangConfig = field(default_factory=SglangConfig)
    swanlab: SwanlabConfig = field(default_factory=SwanlabConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    command: str = field(default="train", compare=False)
    source_file: Path | None = field(default=None, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def precision(self) -> Precision:
        """Number format of training."""
        if self.finetuning.pure_bf16:
            return "pure_bf16"
        if self.training.bf16:
            return "bf16"
        return "fp16" if self.training.fp16 else "fp32"

    @property
    def packs(self) -> bool:
        """True when sequences are filled with several examples; left out, only stage pt does so."""
        if self.data.packing is None:
            return self.data.neat_packing or self.finetuning.stage == "pt"
        return self.data.packing

    @property
    def uses_reference(self) -> bool:
        """True when the loss needs a reference model: DPO without orpo and simpo, KTO, PPO, ASFT."""
        stage = self.finetuning.stage
        if stage == "dpo":
            return self.preference.pref_loss not in {"orpo", "simpo"}
        return stage in {"kto", "ppo"} or (stage == "sft" and self.loss.use_asft_loss)

    @property
    def asks_in_batches(self) -> bool:
        """True when predictions are to be made for a given number of prompts at a time."""
        return self.command in {"predict", "train"} and "per_device_eval_batch_size" in self.origins

    def sections(self) -> dict[str, Section]:
        """All sections by attribute name, in reading order."""
        return {name: getattr(self, name) for name in section_types()}

    def place(self, key: str) -> str:
        """Where `key` was given, such as `run.yaml:3`, or `default`."""
        return self.origins.get(key, "default")

    def to_yaml_dict(self, *, redact: bool = True, only_changed: bool = False) -> dict[str, object]:
        """The flat mapping that `load_config` turns into an equal config; plain YAML values only.

        Holds the keys its command accepts. redact leaves out secrets, also those inside mappings. only_changed leaves
        out what equals its default.
        """
        flat: dict[str, object] = {}
        for section in self.sections().values():
            if self.command not in section.commands:
                continue
            flat.update(_flatten(section, redact=redact, only_changed=only_changed))
        return flat


@functools.cache
def section_types() -> dict[str, type[Section]]:
    """Section models by their attribute name in RunConfig, in reading order."""
    hints = get_type_hints(RunConfig)
    fields = (item.name for item in dataclasses.fields(RunConfig))
    return {name: hints[name] for name in fields if isinstance(hints[name], type) and issubclass(hints[name], Section)}


def _flatten(section: Section, *, redact: bool, only_changed: bool) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        meta = info.json_schema_extra
        if name == "extra" or (redact and isinstance(meta, dict) and meta["secret"]):
            continue
        if not only_changed or value != info.default:
            flat[name] = plain(value, redact=redact)
    passed_on = getattr(section, "extra", {})
    return flat | {key: plain(value, redact=redact) for key, value in passed_on.items()}


def plain(value: object, *, redact: bool) -> object:
    """The value in lists, dicts and plain values; redact leaves out inner keys that name a secret."""
    if isinstance(value, tuple | list):
        return [plain(item, redact=redact) for item in value]
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if not (redact and _SECRET_KEY.search(str(key)))}
        return {key: plain(item, redact=redact) for key, item in kept.items()}
    return value
