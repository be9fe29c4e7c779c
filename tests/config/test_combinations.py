"""The table of combinations is what a run meets at its start: yes is read without a fault, no is that very sentence."""

from __future__ import annotations

import itertools
import random

import pytest

from llamafactory.config import load_config
from llamafactory.config.combinations import (
    BASE,
    Choice,
    Table,
    adapters,
    optimizers,
    quantizers,
    refusal,
    stages,
    tables,
)
from llamafactory.errors import ConfigError

TABLES = {table.title: table for table in tables()}
DIRECT = [title for title in TABLES if title.startswith("Method")]


def faults(*choices: Choice) -> str:
    """What a run with these choices is told; empty when it starts."""
    given = {key: value for choice in choices for key, value in choice.settings.items()}
    try:
        load_config({**BASE, **given})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("title", DIRECT)
def test_every_cell_is_what_a_run_is_told(title: str) -> None:
    table: Table = TABLES[title]
    for row, column in itertools.product(table.rows, table.columns):
        cell, told = table.cells[row.title, column.title], faults(row, column)
        assert told == "" if cell is None else f": {cell.sentence}" in told, (row, column)


def test_four_choices_combine_when_all_pairs_do() -> None:
    draw, seen = random.Random(6), set()
    for _ in range(60):
        four = [draw.choice(axis) for axis in (adapters(), stages(), quantizers(), optimizers())]
        method, stage, quantized, optimized = (choice.title for choice in four)
        refused = [
            TABLES[title].cells[pair]
            for title, pair in (
                ("Method and stage", (method, stage)),
                ("Method and quantization", (method, quantized)),
                ("Method and optimizer", (method, optimized)),
                ("Stage and quantization", (stage, quantized)),
                ("Stage and optimizer", (stage, optimized)),
                ("Optimizer and quantization", (optimized, quantized)),
            )
        ]
        assert (faults(*four) == "") == (not any(refused)), four
        seen.add(not any(refused))
    assert seen == {True, False}


def test_the_parts_speak_for_themselves() -> None:
    titles = {choice.title for choice in adapters()}
    assert {"full", "LLaMA Pro", "LoRA", "DoRA", "LoRA, PiSSA start", "LoRA, LoRA-GA start", "AdaLoRA"} <= titles
    galore = next(choice for choice in optimizers() if choice.title == "GaLore")
    told = refusal(galore, Choice("LoRA", {"finetuning_type": "lora"}))
    assert told is not None and told.reason == "adapters are small already; set finetuning_type to full or freeze"
