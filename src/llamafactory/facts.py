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

PROCESSES, SHARDED, DEEPSPEED, PACKED = "several processes", "fsdp", "deepspeed", "packed examples"
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

    chosen_by: empty for parts that are chosen by their file name as the value of their family's key.
    """

    title: str
    chosen_by: tuple[Setting, ...] = ()
    clashes: tuple[Clash, ...] = ()


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

ADAMW_ONLY = Clash(
    "optim",
    "this optimizer has an update rule of its own, with AdamW for the rest",
    "remove optim",
    allowed=("adamw_torch", "adamw_torch_fused"),
)
"""The clash of an optimizer that replaces `optim`."""


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
