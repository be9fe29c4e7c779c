"""What every section model is made of: the frozen base, `option(...)` for fields, and the value types of the surface.

Knows pydantic. Does not know which sections exist, nor where values come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

TRAIN = ("train", "data", "predict", "plan")
INFER = ("chat", "api", "webchat", "export")
EVERY = (*TRAIN, *INFER, "eval")
COMMANDS = EVERY


class Section(BaseModel):
    """Base of all section models: frozen, unknown keys refused, finite numbers only.

    commands: the commands that accept the keys of this section. title: the heading in help texts.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )

    commands: ClassVar[tuple[str, ...]] = EVERY
    title: ClassVar[str] = ""


def option(default: object, doc: str, *, unit: str = "", secret: bool = False) -> Any:
    """Declare a field: its default, one sentence of documentation, the unit of its value, and whether it is secret.

    A secret value is never shown, logged or written to a file.
    """
    return Field(default=default, description=doc, json_schema_extra={"unit": unit, "secret": secret})


def split_commas(value: object) -> object:
    """Turn `"a, b"`, a list or None into a tuple of non-empty strings; leave other values to the type check."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        return tuple(item.strip() if isinstance(item, str) else item for item in value if item not in {"", None})
    return value


def read_mapping(value: object) -> object:
    """Turn a JSON object written as text into a mapping; leave everything else alone."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not valid JSON ({error.msg} at character {error.pos})") from error
    return value


def join_words(value: object) -> object:
    """Turn a list of words into one text separated by blanks."""
    return " ".join(str(item) for item in value) if isinstance(value, list | tuple) else value


CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
CommaFloats = Annotated[tuple[float, ...], BeforeValidator(split_commas)]
Words = Annotated[str, BeforeValidator(join_words)]
JsonMapping = Annotated[Mapping[str, object], BeforeValidator(read_mapping)]
JsonMappingOrPath = Annotated[dict[str, object] | str, BeforeValidator(read_mapping)]
Positive = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
