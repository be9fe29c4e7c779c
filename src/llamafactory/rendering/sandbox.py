"""Rendering of chat templates that others wrote: an immutable sandbox with limits on steps, time and size.

A template that ships with a model is a program. It gets no file, no private attribute, no clock, and a bounded number
of steps and characters. Knows no tokenizer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llamafactory.errors import ConfigError

MAX_SECONDS = 0.8
MAX_STEPS = 1_000_000
MAX_CHARS = 4_000_000
MAX_RANGE = 100_000

_FILTERS_LEFT_OUT = ("center", "wordwrap", "batch", "slice", "format", "filesizeformat", "urlize", "pprint", "random")
_FILTERS_COUNTED = frozenset(
    {"list", "map", "select", "reject", "selectattr", "rejectattr", "sort", "unique", "groupby", "sum"}
)
_METHODS_REFUSED = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "encode"}
)


class Refused(Exception):
    """The template itself refuses a conversation, through `raise_exception`."""


class ChatTemplate:
    """A compiled chat template. date: what it is told when it asks for today's date."""

    def __init__(self, source: str, *, date: str) -> None:
        self.source = source
        self.date = date
        self._environment = _Environment(date)
        try:
            if len(source) > MAX_CHARS:
                raise SecurityError("it is too long")
            tree = self._environment.parse(source)
            _count_loops(tree)
            code = self._environment.compile(tree)
            self._template = self._environment.template_class.from_code(self._environment, code, _globals(date), None)
        except (jinja2.TemplateError, RecursionError) as error:
            raise unusable(str(error)) from error

    def render(self, variables: Mapping[str, object]) -> str:
        """The text for `variables`. Raises Refused, or ConfigError when the template fails or exceeds a limit."""
        budget = self._environment.budget = _Budget()
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(**variables):
                budget.step()
                size += len(piece)
                if size > MAX_CHARS:
                    raise SecurityError("it writes too much text")
                pieces.append(piece)
        except Refused:
            raise
        except (jinja2.TemplateError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise unusable(str(error) or type(error).__name__) from error
        return "".join(pieces)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _rebuild, (self.source, self.date)


def unusable(reason: str) -> ConfigError:
    """The error for a chat template that cannot be used."""
    return ConfigError(
        f"template: the tokenizer's own chat template cannot be used, because {reason[:300]}; "
        "name a built-in template with `template: ...` (list them with `llamafactory-cli template show`)"
    )


class _Budget:
    """Counts what one rendering uses."""

    def __init__(self) -> None:
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS or (self._steps % 128 == 0 and time.monotonic() > self._deadline):
            raise SecurityError("it takes too many steps")


class _Counted:
    """Items whose every step is counted; their number stays known, for `loop.length`."""

    def __init__(self, items: Iterable[object], budget: _Budget) -> None:
        self._items = items if isinstance(items, Sequence | Mapping) else list(items)
        self._budget = budget

    def __iter__(self) -> Iterator[object]:
        for item in self._items:
            self._budget.step()
            yield item

    def __len__(self) -> int:
        return len(self._items)


class _Generation(jinja2.ext.Extension):
    """Lets `{% generation %}` blocks, which mark answers for trainers, stand for their text."""

    tags = {"generation"}  # noqa: RUF012  (declared by jinja2 as a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _SafeNamespace(Namespace):
    """A namespace whose names cannot reach Python's own attributes."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError("it uses a private name")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, counting calls and refusing operations that make huge values at one stroke."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, date: str) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.budget = _Budget()
        for name in _FILTERS_LEFT_OUT:
            self.filters.pop(name, None)
        self.filters |= {
            "tojson": _to_json,
            "join": _join,
            "replace": _replace,
            "indent": _indent,
            "_counted": lambda items: _Counted(items, self.budget),
            "_sized": _sized,
        }

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.budget.step()
        name = getattr(function, "__name__", "")
        if name in _METHODS_REFUSED:
            raise SecurityError(f"it calls {name}")
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            return _replace(owner, *args)
        if isinstance(owner, str) and name == "join" and args:
            return _join(args[0], owner)
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text with %")
        if operator == "**" and max(abs(left), abs(right)) > 64:
            raise SecurityError("it raises a number to a large power")
        if operator == "*":
            _check_product(left, right)
        return _sized(super().call_binop(context, operator, left, right))


def _globals(date: str) -> dict[str, object]:
    return {
        "namespace": _SafeNamespace,
        "range": _range,
        "dict": lambda **items: dict(items),
        "raise_exception": _raise,
        "strftime_now": lambda _format: date,
    }


def _raise(message: str) -> None:
    raise Refused(message)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_RANGE:
        raise SecurityError("its range is too large")
    return found


def _to_json(value: object, **options: Any) -> str:
    indent = options.get("indent")
    if isinstance(indent, int) and indent > 16:
        raise SecurityError("its indent is too large")
    return json.dumps(
        value,
        ensure_ascii=bool(options.get("ensure_ascii", False)),
        indent=indent,
        separators=options.get("separators"),
        sort_keys=bool(options.get("sort_keys", False)),
    )


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_CHARS:
        raise SecurityError("it makes a value that is too large")
    return value


def _check_product(left: object, right: object) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int) and len(value) * times > MAX_CHARS:
            raise SecurityError("it repeats a value too often")
    if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**64:
        raise SecurityError("its numbers are too large")


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MAX_CHARS:
        raise SecurityError("it makes a value that is too large")
    return text.replace(old, new, -1 if count is None else count)


def _join(items: Iterable[Any], separator: Any = "", attribute: str | None = None) -> str:
    texts = [str(item if attribute is None else item[attribute]) for item in items]
    if sum(map(len, texts)) + len(str(separator)) * len(texts) > MAX_CHARS:
        raise SecurityError("it makes a value that is too large")
    return str(separator).join(texts)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = text.count("\n") + 1
    if (width if isinstance(width, int) else len(width)) * lines > MAX_CHARS:
        raise SecurityError("its indent is too large")
    return do_indent(text, width, first, blank)


def _count_loops(tree: nodes.Template) -> None:
    """Let every loop count its steps and every joining of texts check its size."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
    for used in tree.find_all(nodes.Filter):
        if used.name in _FILTERS_COUNTED and used.node is not None:
            used.node = nodes.Filter(used.node, "_counted", [], [], None, None, lineno=used.lineno)
    for node in list(tree.find_all(nodes.Node)):
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, name, _checked(value))
            elif isinstance(value, list):
                value[:] = [_checked(item) if isinstance(item, nodes.Concat) else item for item in value]


def _checked(concat: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(concat, "_sized", [], [], None, None, lineno=concat.lineno)


def _rebuild(source: str, date: str) -> ChatTemplate:
    return ChatTemplate(source, date=date)
