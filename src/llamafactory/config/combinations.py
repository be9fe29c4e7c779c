"""What combines with what, as tables: every pair of choices is put to the rules that check a run at its start.

The choices are those that the parts state about themselves. Imports no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from llamafactory.config.catalog import options
from llamafactory.config.rules import violations
from llamafactory.config.rules_parts import ADAPTER, FAMILIES, OPTIMIZER, QUANTIZER, START
from llamafactory.config.run import RunConfig, section_types
from llamafactory.facts import Facts, Setting, read_facts

BASE: Mapping[str, object] = {
    "model_name_or_path": "m", "dataset": "d", "output_dir": "o", "do_train": True,
}  # fmt: skip
"""A run that is complete without any of the choices."""

_EXAMPLES: Mapping[str, object] = {"loraplus_lr_ratio": 16.0, "lora_target_parameters": "mlp.experts.gate_up_proj"}
"""Values for the choices that any value makes."""


_ORDER: Mapping[object, int] = {"full": 0, "freeze": 1, "lora": 2}
"""The methods that come first."""


@dataclass(frozen=True)
class Choice:
    """One row or column: its title, and the settings that choose it."""

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """sentence: as a run reports it, without the place. reason: its end, which names no value."""

    sentence: str
    reason: str


@dataclass(frozen=True)
class Table:
    """title: of the two axes. cells: titles of row and column -> the refusal; None where they combine."""

    title: str
    rows: tuple[Choice, ...]
    columns: tuple[Choice, ...]
    cells: Mapping[tuple[str, str], Refusal | None]


def tables() -> Iterator[Table]:
    """All pairs of the axes; where none of the two is the adapter, one that fits both is looked for."""
    methods, stage, quantized, optimized = adapters(), stages(), quantizers(), optimizers()
    for title, columns in (
        ("Method and stage", stage),
        ("Method and quantization", quantized),
        ("Method and optimizer", optimized),
        ("Method and circumstances", circumstances()),
    ):
        cells = {(row.title, column.title): refusal(row, column) for row in methods for column in columns}
        yield Table(title, methods, columns, cells)
    for title, rows, columns in (
        ("Stage and quantization", stage, quantized),
        ("Stage and optimizer", stage, optimized),
        ("Optimizer and quantization", optimized, quantized),
        ("Optimizer and circumstances", optimized, circumstances()),
        ("Quantization and circumstances", quantized, circumstances()),
    ):
        cells = {(row.title, column.title): _with_any(methods, row, column) for row in rows for column in columns}
        yield Table(title, rows, columns, cells)


def refusal(*choices: Choice) -> Refusal | None:
    """Why a run with these choices is refused, the first of the reasons; None when it is not."""
    config = _run({key: value for choice in choices for key, value in choice.settings.items()})
    first = next(violations(config), None)
    return None if first is None else Refusal(first.words(config), f"{first.why}; {first.fix}")


def _with_any(methods: tuple[Choice, ...], *choices: Choice) -> Refusal | None:
    """None when the choices combine with one of the methods, else why not with the default one."""
    if not all(refusal(method, *choices) for method in methods):
        return None
    return refusal(*choices)


def adapters() -> tuple[Choice, ...]:
    """Finetuning types, their variants, and LoRA's starts."""
    found = []
    for name, facts in read_facts(FAMILIES[ADAPTER].package).items():
        chosen = {ADAPTER: name}
        found.append(Choice(facts.title, chosen))
        found += [Choice(variant.title, chosen | _settings(variant)) for variant in facts.variants]
        if name == "lora":
            starts = read_facts(FAMILIES[START].package).values()
            found += [Choice(f"LoRA, {start.title} start", chosen | _settings(start)) for start in starts]
    return tuple(sorted(found, key=lambda choice: _ORDER.get(choice.settings[ADAPTER], len(_ORDER))))


def stages() -> tuple[Choice, ...]:
    """Stages, with what each cannot do without."""
    further: Mapping[str, Mapping[str, object]] = {
        "ppo": {"reward_model": "r", "reward_model_type": "full"},
        "orpo": {"stage": "dpo", "pref_loss": "orpo"},
        "simpo": {"stage": "dpo", "pref_loss": "simpo"},
    }
    names = [str(name) for name in options()["stage"].choices]
    return tuple(Choice(name, {"stage": name, **further.get(name, {})}) for name in names)


def optimizers() -> tuple[Choice, ...]:
    """AdamW, its narrow form, and the optimizers of this package."""
    own = read_facts(FAMILIES[OPTIMIZER].package).values()
    ours = sorted((Choice(facts.title, _settings(facts)) for facts in own), key=lambda choice: choice.title.lower())
    return (Choice("AdamW"), Choice("8-bit AdamW", {"optim": "adamw_8bit"}), *ours)


def quantizers() -> tuple[Choice, ...]:
    """No quantization, and each one that is made while loading, in its first width."""
    found = [Choice("none")]
    for name, facts in read_facts(FAMILIES[QUANTIZER].package).items():
        for bits in _widths(facts):
            found.append(Choice(f"{facts.title}, {bits} bits", {QUANTIZER: name, "quantization_bit": bits}))
    return tuple(found)


def circumstances() -> tuple[Choice, ...]:
    """What else decides whether a method works."""
    zero = {stage: {"zero_optimization": {"stage": stage}} for stage in (2, 3)}
    return (
        Choice("fp16", {"fp16": True}),
        Choice("ZeRO-2", {"deepspeed": zero[2]}),
        Choice("ZeRO-3", {"deepspeed": zero[3]}),
        Choice("FSDP", {"fsdp": "full_shard"}),
        Choice("several adapters", {"adapter_name_or_path": "a,b"}),
        Choice("new tokens", {"resize_vocab": True, "add_tokens": "t"}),
    )


def _widths(facts: Facts) -> tuple[object, ...]:
    """The bits a quantizer has, as its facts say; none for formats that are only read."""
    return next((clash.allowed for clash in facts.clashes if clash.key == "quantization_bit"), ())


def _settings(facts: Facts) -> dict[str, object]:
    return dict([_given(facts.chosen_by[0])])


def _given(setting: Setting) -> tuple[str, object]:
    key, values = setting
    return key, values[0] if values else _EXAMPLES[key]


def _run(settings: Mapping[str, object]) -> RunConfig:
    """The resolved run; every setting is under its own name already."""
    given = {**BASE, **settings}
    sections: dict[str, dict[str, object]] = {}
    for key, value in given.items():
        sections.setdefault(options()[key].section, {})[key] = value
    built = {name: section_types()[name](**values) for name, values in sections.items()}
    return RunConfig(**built, origins=dict.fromkeys(given, "options"))  # type: ignore[arg-type]
