"""What a tool's JSON schema says about its parameters, for formats that write text without quotes.

Knows no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamafactory.rendering.calls import Schema, name_of, unwrap

Parameters = Mapping[str, Mapping[str, object]]
"""The schemas of a tool's parameters by name."""

_DEPTH = 8


def parameters_of(tools: Sequence[Schema]) -> Mapping[str, Parameters]:
    """The parameters of each tool by the tool's name."""
    return {name_of(tool): _properties(tool) for tool in tools}


def fit(text: str, value: object, schema: Mapping[str, object] | None) -> object:
    """`value` is what `text` spells; the text itself where the schema takes text and no such value.

    Where it takes both (`["string", "integer"]`), or says nothing, the value stays: the text "5" and the number 5 look
    the same then.
    """
    if isinstance(value, str) or not schema:
        return value
    kinds, choices = _allowed(schema, _DEPTH)
    if choices:
        return text if text in choices and value not in choices else value
    return text if "string" in kinds and not kinds & _kinds_of(value) else value


def _properties(tool: Schema) -> Parameters:
    parameters = unwrap(tool).get("parameters")
    if not isinstance(parameters, Mapping):
        return {}
    properties = parameters.get("properties")
    definitions = parameters.get("$defs") or parameters.get("definitions")
    named = properties.items() if isinstance(properties, Mapping) else ()
    return {name: _resolve(schema, definitions) for name, schema in named if isinstance(schema, Mapping)}


def _resolve(schema: Mapping[str, object], definitions: object) -> Mapping[str, object]:
    """The schema that a `$ref` names, or the schema itself."""
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found = definitions.get(name) if name and isinstance(definitions, Mapping) else None
    return found if isinstance(found, Mapping) else schema


def _allowed(schema: Mapping[str, object], depth: int) -> tuple[set[str], list[object]]:
    """The types a schema takes, and the values when it lists them."""
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    named = schema.get("type")
    kinds = {named} if isinstance(named, str) else set(map(str, named)) if isinstance(named, list) else set()
    if schema.get("nullable") is True:
        kinds.add("null")
    listed = list(choices) if isinstance(choices, list) else []
    for key in ("anyOf", "oneOf") if depth else ():
        variants = schema.get(key)
        for variant in variants if isinstance(variants, list) else []:
            if isinstance(variant, Mapping):
                more, others = _allowed(variant, depth - 1)
                kinds |= more or {_name_of(other) for other in others}
    return kinds, listed


def _kinds_of(value: object) -> set[str]:
    """The JSON types a value has; a whole number is both integer and number."""
    return {"integer", "number"} if _name_of(value) == "integer" else {_name_of(value)}


def _name_of(value: object) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"
