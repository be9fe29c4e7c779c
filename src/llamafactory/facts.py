"""What a part states about itself: what chooses it and what it cannot stand beside, as data.

A part's file holds `FACTS = Facts(...)` made of literals. The statement is read from the source text, so a
configuration is compared with it, and the documentation is written from it, without importing torch. Knows no part
and no option.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

Setting = tuple[str, tuple[object, ...]]
"""A key and the values meant; no values: any but the default."""

PROCESSES, SHARDED, DEEPSPEED, ZERO3 = "several processes", "fsdp", "deepspeed", "ZeRO-3"
PACKED, SAME_REFERENCE = "packed examples", "a reference model made of the trained one"
"""Circumstances of a run that stand where a key may: they can come from the launch or a default as well."""


@dataclass(frozen=True)
class Clash:
    """One setting, or circumstance, that the part cannot stand beside.

    key: the option, or one of the circumstances above. values: those that clash (none: any but the default); allowed:
    the only ones that do not. when: the clash only counts while one of these settings holds. if_given: the default of
    the key is left alone. why and fix: ends of the sentence the user reads. A clash with the key that chose the part
    does not count.
    """

    key: str
    why: str
    fix: str
    values: tuple[object, ...] = ()
    allowed: tuple[object, ...] = ()
    when: tuple[Setting, ...] = ()
    if_given: bool = False


@dataclass(frozen=True)
class Facts:
    """A part: its name in the documentation, the settings of which any one chooses it, and its clashes.

    chosen_by: empty for parts that are chosen by their file name as the value of their family's key. variants: options
    of the part that are choices with clashes of their own; these count also while another part is chosen.
    """

    title: str
    chosen_by: tuple[Setting, ...] = ()
    clashes: tuple[Clash, ...] = ()
    variants: tuple[Facts, ...] = ()


WHOLE_WEIGHTS = (
    Clash(
        "fsdp", "the update needs whole weights, and FSDP shards them", "train without fsdp, or use optim: adamw_torch"
    ),
    Clash("deepspeed", "DeepSpeed brings its own optimizer step", "remove one of the two"),
)
"""Clashes of an optimizer that works on whole weights."""

FULL_WEIGHTS = Clash(
    "finetuning_type",
    "adapters are small already",
    "set finetuning_type to full or freeze",
    allowed=("full", "freeze"),
)
"""The clash of an optimizer that saves memory on the weights of the model itself."""

QUANTIZED = Clash(
    "quantization_bit",
    "quantized weights cannot learn",
    "set finetuning_type to lora",
    when=(("quantization_aware", (False,)),),
)
"""The clash of a method that trains the weights of the model itself."""

LORA_ONLY = Clash("finetuning_type", "it is a variant of lora", "set finetuning_type to lora", allowed=("lora",))
"""The clash of what only LoRA has."""

WHOLE_BASE = (
    Clash(
        "a reference model made of the trained one", "without its adapter the model is no reference any more",
        "give ref_model, or take another start",
    ),
    Clash("ZeRO-3", "it needs whole weights, and ZeRO-3 spreads them", "use ZeRO-2, or take another start"),
)  # fmt: skip
"""Clashes of a start of LoRA that changes the base."""

OUT_OF_THE_BASE = (
    LORA_ONLY,
    Clash(
        "quantization_bit", "quantized weights have no components to take",
        "set lora_init to loftq, or remove one of the two",
    ),
    *WHOLE_BASE,
)  # fmt: skip
"""Clashes of a start of LoRA that takes its first values out of the base."""

FROM_DATA = (
    Clash(
        "stage", "it looks at answers before training, and ppo has none until it samples them", "take another start",
        values=("ppo",),
    ),
    Clash("fsdp", "it runs the whole model before training, and FSDP shards it", "take another start"),
    Clash("ZeRO-3", "it runs the whole model before training, and ZeRO-3 spreads it", "take another start"),
)  # fmt: skip
"""Clashes of a start of LoRA that looks at the run's own data."""

ADAMW_ONLY = Clash(
    "optim",
    "this optimizer has an update rule of its own, with AdamW for the rest",
    "remove optim",
    allowed=("adamw_torch", "adamw_torch_fused"),
)
"""The clash of an optimizer that replaces `optim`."""

PACKED_WEIGHTS = Clash("fsdp", "its packed weights cannot be sharded", "train without fsdp, or use 4-bit bnb")
"""The clash of a quantization whose weights only fit together as a whole."""

READ_ONLY = Clash(
    "quantization_bit",
    "this format is only read from a checkpoint",
    "use bnb, hqq, eetq or torchao, or remove quantization_bit",
)
"""The clash of a quantization that cannot be made while loading."""


def updates_in_backward(when: tuple[Setting, ...] = ()) -> tuple[Clash, ...]:
    """Clashes of an optimizer that updates each weight within the backward pass, while one of the settings holds."""
    return (
        Clash(
            "gradient_accumulation_steps", "every backward pass is an update", "set the accumulation to 1",
            allowed=(1,), when=when,
        ),
        Clash(
            "max_grad_norm", "the norm of all gradients is known only after the updates", "set max_grad_norm to 0",
            allowed=(0,), when=when, if_given=True,
        ),
        Clash("fp16", "scaled gradients cannot be used before they are checked", "use bf16 or pure_bf16", when=when),
        Clash(
            "several processes", "several processes cannot exchange gradients this way",
            "use one process, or the same optimizer without updates in the backward pass", when=when,
        ),
    )  # fmt: skip


_NAMES: dict[str, object] = {
    "updates_in_backward": updates_in_backward,
    "Clash": Clash,
    "Facts": Facts,
    "WHOLE_WEIGHTS": WHOLE_WEIGHTS,
    "FULL_WEIGHTS": FULL_WEIGHTS,
    "ADAMW_ONLY": ADAMW_ONLY,
    "PACKED_WEIGHTS": PACKED_WEIGHTS,
    "READ_ONLY": READ_ONLY,
    "QUANTIZED": QUANTIZED,
    "LORA_ONLY": LORA_ONLY,
    "OUT_OF_THE_BASE": OUT_OF_THE_BASE,
    "FROM_DATA": FROM_DATA,
    "WHOLE_BASE": WHOLE_BASE,
    "PACKED": PACKED,
    "SHARDED": SHARDED,
    "DEEPSPEED": DEEPSPEED,
}


@functools.cache
def read_facts(package: str) -> Mapping[str, Facts]:
    """Part name -> facts, for the files of a package that state some; imports none of them."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not a package"
    (folder,) = spec.submodule_search_locations
    found = {}
    for path in sorted(Path(folder).glob("[!_]*.py")):
        source = path.read_text(encoding="utf-8")
        if "\nFACTS = " in source:
            found[path.stem] = parse_facts(source)
    return found


def parse_facts(source: str) -> Facts:
    """The facts in the text of a module. Raises ValueError when they are not made of literals."""
    names = dict(_NAMES)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            name = node.targets[0].id
            if name == "FACTS":
                facts = _value(node.value, names)
                assert isinstance(facts, Facts)
                return facts
            try:
                names[name] = _value(node.value, names)
            except ValueError:
                continue  # a constant that the facts do not use
    raise ValueError("there is no FACTS = Facts(...)")


def _value(node: ast.expr, names: Mapping[str, object]) -> object:
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Tuple):
        items: list[object] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                items.extend(cast("tuple[object, ...]", _value(item.value, names)))
            else:
                items.append(_value(item, names))
        return tuple(items)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and callable(shape := names.get(node.func.id)):
        arguments = [_value(item, names) for item in node.args]
        return shape(*arguments, **{str(item.arg): _value(item.value, names) for item in node.keywords})
    return ast.literal_eval(node)
