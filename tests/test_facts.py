"""What parts state about themselves is read from their source, and only literals are understood."""

from __future__ import annotations

import pytest

from llamafactory.facts import Clash, Facts, parse_facts, read_facts

SOURCE = '''
"""A part."""
import no_such_package

OTHER = no_such_package.value
NAMES = ("a", "b")
FACTS = Facts(
    "Part", chosen_by=(("key", (*NAMES, "c")),), clashes=(Clash("x", "why " "so", "fix", values=(1,)), FULL_WEIGHTS)
)
'''


def test_facts_are_read_without_importing() -> None:
    facts = parse_facts(SOURCE)
    assert facts.title == "Part" and facts.chosen_by == (("key", ("a", "b", "c")),)
    assert facts.clashes[0] == Clash("x", "why so", "fix", values=(1,))
    assert facts.clashes[1].key == "finetuning_type"


@pytest.mark.parametrize("source", ["X = 1\n", "FACTS = Facts(name)\n", "FACTS = Facts(open('/tmp/x'))\n"])
def test_anything_but_literals_is_refused(source: str) -> None:
    with pytest.raises(ValueError):
        parse_facts(source)


def test_parts_without_facts_are_left_out() -> None:
    assert isinstance(read_facts("llamafactory.optim")["galore"], Facts)
    assert read_facts("llamafactory.rendering.tools") == {}
