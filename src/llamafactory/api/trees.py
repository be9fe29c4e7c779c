"""Check JSON values that clients may shape freely, such as the schemas of tools, before templates walk through them.

Knows JSON, not what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamafactory.api.errors import ApiError

MAX_DEPTH = 32
_WORDS = {"type": (str, list), "description": (str,), "enum": (list,), "required": (list,)}


def check_tree(value: object, place: str, depth: int = 0) -> None:
    """Raise ApiError for a value that is nested too deeply or holds text that is no Unicode."""
    if depth > MAX_DEPTH:
        raise ApiError(400, f"{place}: nested deeper than {MAX_DEPTH} levels, the most this server reads", param=place)
    if isinstance(value, str) and not _is_unicode(value):
        raise ApiError(400, f"{place}: holds half a character (a lone surrogate); send whole ones", param=place)
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_tree(key, place, depth)
            check_tree(item, place, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_tree(item, place, depth + 1)


def check_schema(schema: object, place: str, depth: int = 0) -> None:
    """Raise ApiError where the JSON Schema of a tool is not shaped as the tool formats read it."""
    if depth == 0:
        check_tree(schema, place)
    if not isinstance(schema, Mapping):
        raise ApiError(400, f"{place}: must be the JSON Schema of a value, an object", param=place)
    for word, kinds in _WORDS.items():
        if not isinstance(schema.get(word, kinds[0]()), kinds):
            names = " or a ".join(kind.__name__ for kind in kinds)
            raise ApiError(400, f"{place}.{word}: must be a {names}", param=place)
    for word in ("type", "required"):
        if not all(isinstance(item, str) for item in schema.get(word) or ()):
            raise ApiError(400, f"{place}.{word}: must hold texts alone", param=place)
    inner = schema.get("properties", {})
    if not isinstance(inner, Mapping):
        raise ApiError(400, f"{place}.properties: must be an object, a schema for each name", param=place)
    for name, item in inner.items():
        check_schema(item, f"{place}.properties.{name}", depth + 1)
    if "items" in schema:
        check_schema(schema["items"], f"{place}.items", depth + 1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
