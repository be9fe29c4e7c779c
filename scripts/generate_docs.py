"""Write the generated parts of the documentation; with --check only tell whether they are up to date.

Fills every block `<!-- generated: NAME -->` ... `<!-- end of NAME -->` in docs/. Knows the option models and the
templates; does not know the text around the blocks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llamafactory.config.availability import gaps
from llamafactory.config.catalog import options as option_table
from llamafactory.config.combinations import tables
from llamafactory.config.renamed import renamed_keys
from llamafactory.config.run import section_types
from llamafactory.config.section import COMMANDS, Section
from llamafactory.facts import Clash, read_facts
from llamafactory.rendering.template import templates

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


def type_words(schema: dict[str, object], definitions: dict[str, dict[str, object]]) -> str:
    """Say in a few words which values a JSON Schema allows."""
    if "$ref" in schema:
        return type_words(definitions[str(schema["$ref"]).rsplit("/", 1)[-1]], definitions)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in list_of(schema["enum"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        words = [type_words(part, definitions) for part in list_of(schema["anyOf"]) if part != {"type": "null"}]
        return " or ".join(dict.fromkeys(words))
    return plain_type(schema) + limits(schema)


def list_of(value: object) -> list:
    return value if isinstance(value, list) else []


def plain_type(schema: dict[str, object]) -> str:
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items")
        number = isinstance(items, dict) and items.get("type") == "number"
        return "numbers separated by commas" if number else "names separated by commas"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    return words.get(str(kind), "mapping")


def limits(schema: dict[str, object]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {' and '.join(found)}" if found else ""


def default_words(value: object) -> str:
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`{','.join(str(item) for item in value)}`"
    return f"`{value}`"


def option_rows(section: type[Section]) -> list[str]:
    schema = section.model_json_schema()
    properties, definitions = schema["properties"], schema.get("$defs", {})
    rows = []
    for name, info in section.model_fields.items():
        if name == "extra":
            continue
        kind = type_words(properties[name], definitions)
        unit = info.json_schema_extra.get("unit", "") if isinstance(info.json_schema_extra, dict) else ""
        meaning = f"{info.description} Unit: {unit}." if unit else str(info.description)
        cells = [f"`{name}`", kind, default_words(info.default), meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def options() -> str:
    """One table for each section of the configuration."""
    parts = []
    for section in section_types().values():
        commands = "all commands" if section.commands == COMMANDS else ", ".join(f"`{c}`" for c in section.commands)
        summary = (section.__doc__ or "").strip().splitlines()[0]
        head = f"## {section.title}\n\n{summary} Read by {commands}.\n"
        table = ["| option | value | default | meaning |", "| --- | --- | --- | --- |", *option_rows(section)]
        parts.append(head + "\n" + "\n".join(table))
    return "\n\n".join(parts)


def template_table() -> str:
    """All chat templates, and what is special about them."""
    rows = ["| `template` | tool format | stop words | notes |", "| --- | --- | --- | --- |"]
    for name, template in sorted(templates().items()):
        notes = ["reasoning"] if template.reasoning else []
        notes += ["has a system prompt of its own"] if template.default_system else []
        stops = ", ".join(f"`{word}`".replace("|", "\\|") for word in template.stop_words) or "the end token"
        rows.append(f"| `{name}` | `{template.tool_format}` | {stops} | {'; '.join(notes)} |")
    return "\n".join(rows)


def new_words(rule: Mapping[str, object], value: str) -> str:
    values = rule.get("values")
    if isinstance(values, dict) and value:
        pairs = values[value].items()
        return ", ".join(f"`{key}: {plain(new)}`" for key, new in pairs) or "what happens anyway"
    if "to" in rule:
        return f"`{rule['to']}`"
    if "invert" in rule:
        return f"the opposite of `{rule['invert']}`"
    return f"nothing: {rule['drop']}" if "drop" in rule else str(rule["else"])


def plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def renamed_table() -> str:
    """Keys and values of earlier releases, and what they mean now."""
    rows = ["| old | now |", "| --- | --- |"]
    for key, rule in renamed_keys().items():
        values = rule.get("values")
        changed = [value for value in values if values[value]] if isinstance(values, dict) else []
        rows += [f"| `{key}: {value}` | {new_words(rule, value)} |" for value in changed]
        if not changed:
            rows.append(f"| `{key}` | {new_words(rule, '')} |")
    return "\n".join(rows)


def planned_table() -> str:
    """Settings that are read and checked, and that a run of this version refuses."""
    rows = ["| setting | missing part |", "| --- | --- |"]
    for gap in gaps():
        values = ", ".join(f"`{value}`" for value in gap.values)
        places = ", ".join([*gap.commands, *([f"stages {', '.join(gap.stages)}"] if gap.stages else [])])
        where = f" ({places})" if places else ""
        rows.append(f"| `{gap.key}`{': ' + values if values else ''}{where} | {gap.part} |")
    return "\n".join(rows)


def clash_words(clash: Clash) -> str:
    """The setting a part cannot stand beside."""
    if clash.key not in option_table():
        return clash.key
    values = [plain(value) for value in clash.values]
    if clash.allowed:
        return f"`{clash.key}` other than {', '.join(f'`{plain(value)}`' for value in clash.allowed)}"
    return f"`{clash.key}: {', '.join(values)}`" if values else f"`{clash.key}`"


def setting_words(setting: tuple[str, tuple[object, ...]]) -> str:
    key, values = setting
    return f"`{key}: {', '.join(plain(value) for value in values)}`" if values else f"`{key}`"


def part_table(package: str, heading: str) -> str:
    """What chooses each part of a package, and what it cannot stand beside and why, as its file states it."""
    rows = [f"| {heading} | chosen by | does not combine with |", "| --- | --- | --- |"]
    for facts in sorted(read_facts(package).values(), key=lambda facts: facts.title.lower()):
        choices = " or ".join(setting_words(setting) for setting in facts.chosen_by)
        clashes = []
        for clash in facts.clashes:
            only = f", with {' or '.join(f'`{key}`' for key, _ in clash.when)}" if clash.when else ""
            clashes.append(f"{clash_words(clash)} ({clash.why}{only})")
        rows.append(f"| {facts.title} | {choices} | {'; '.join(clashes) or '–'} |")
    return "\n".join(rows)


def combination_tables() -> str:
    """Every pair of choices: yes, or the number of the reason why not."""
    parts = []
    for table in tables():
        reasons = list(dict.fromkeys(cell.reason for cell in table.cells.values() if cell is not None))
        head = f"| {table.title.split(' and ')[0].lower()} | " + " | ".join(c.title for c in table.columns) + " |"
        lines = [f"## {table.title}", "", head, "| --- " * (len(table.columns) + 1) + "|"]
        for row in table.rows:
            cells = (table.cells[row.title, column.title] for column in table.columns)
            words = ("yes" if cell is None else f"no ({reasons.index(cell.reason) + 1})" for cell in cells)
            lines.append(f"| {row.title} | " + " | ".join(words) + " |")
        notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
        parts.append("\n".join([*lines, *(["", *notes] if notes else [])]))
    return "\n\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "options": options,
    "templates": template_table,
    "renamed": renamed_table,
    "planned": planned_table,
    "optimizers": partial(part_table, "llamafactory.optim", "optimizer"),
    "kernels": partial(part_table, "llamafactory.models.kernels", "kernel"),
    "combinations": combination_tables,
}


def fill(text: str) -> str:
    """Replace the content of every generated block. Raises KeyError for an unknown block name."""

    def render(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n\n{GENERATORS[name]()}\n\n<!-- end of {name} -->"

    return BLOCK.sub(render, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(filled, encoding="utf-8")
    sys.stdout.write(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'nothing'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
