"""Shapes of a row. One file per `formatting` value; each defines `to_record(row, entry, source, *, stage_kind)`.

A format turns a row into a Record and knows no tokenizer, no template and no file.
"""

from __future__ import annotations

from llamafactory.parts import Family

FORMATS = Family("formatting", "llamafactory.data.formats", ("to_record",))
