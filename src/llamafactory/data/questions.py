"""The questions of a data set: its conversations up to the last answer, which becomes the reference.

Reads whatever an entry holds, so answers can be made for any data set in any stage. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamafactory.config.run import RunConfig
from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.encode import to_records
from llamafactory.data.kinds import Kind
from llamafactory.data.plan import find_entries, open_rows
from llamafactory.data.report import Report
from llamafactory.data.rows import choose_rows
from llamafactory.errors import DataError
from llamafactory.logs import get_logger
from llamafactory.rendering.records import Feedback, Preference, Prompt, Record

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its reference answer, and the data set it is from."""

    dataset: str
    prompt: Prompt


def read_questions(config: RunConfig, names: Sequence[str]) -> list[Question]:
    """The questions of the named data sets, one after the other, each in the order of its file.

    The reference of a comparison is the chosen answer; a judged answer is one when it was judged good; a row without
    an answer has none. Raises DataError for bad rows (unless on_bad_example is skip) and when nothing is left.
    """
    entries, access = find_entries(config, names)
    found: list[Question] = []
    for entry in entries:
        report = Report()
        rows = choose_rows(config, entry, open_rows(entry, access))
        for record in to_records(rows, entry, _kind(entry), report):
            found.append(Question(entry.name, to_prompt(record)))
        if config.data.on_bad_example == "error":
            report.raise_if_bad(entry.name)
        _LOGGER.info(
            "%s: %d questions of %d rows", entry.name, sum(q.dataset == entry.name for q in found), report.read
        )
    if not found:
        raise DataError(f"{', '.join(names)}: no row can be answered; check the files these data sets name")
    return found


def to_prompt(record: Record) -> Prompt:
    """The prompt and the reference answer of a record that is not plain text."""
    if isinstance(record, Preference):
        return Prompt(record.prompt, record.chosen.content, record.chosen.role)
    if isinstance(record, Feedback):
        *asked, answer = record.conversation.messages
        prompt = replace(record.conversation, messages=tuple(asked))
        return Prompt(prompt, answer.content, answer.role) if record.desirable else Prompt(prompt)
    assert isinstance(record, Prompt)
    return record


def _kind(entry: DatasetEntry) -> Kind:
    if entry.ranking:
        return "preference"
    return "prompt" if entry.columns.kto_tag is None else "feedback"
