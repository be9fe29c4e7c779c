"""Which kind of record a training stage reads."""

from __future__ import annotations

from typing import Literal

from llamafactory.errors import DataError

Kind = Literal["text", "conversation", "preference", "feedback", "prompt"]

_STAGE_KINDS: dict[str, Kind] = {
    "pt": "text",
    "sft": "conversation",
    "rm": "preference",
    "dpo": "preference",
    "simpo": "preference",
    "orpo": "preference",
    "kto": "feedback",
    "ppo": "prompt",
}


def kind_of(stage: str) -> Kind:
    """The record kind of a stage; a stage this table does not name trains on conversations."""
    return _STAGE_KINDS.get(stage, "conversation")


def check_kind(kind: Kind, *, name: str, ranking: bool, has_feedback: bool, stage: str) -> None:
    """Raise DataError when a data set of one kind is given to a stage that reads another kind."""
    if kind == "preference" and not ranking:
        raise DataError(
            f"dataset: {name!r} has no ranking: true, but stage {stage} compares a chosen with a rejected answer; "
            "use a preference data set, or set ranking: true with columns chosen and rejected in its entry"
        )
    if kind != "preference" and ranking:
        raise DataError(
            f"dataset: {name!r} is a preference data set (ranking: true), but stage {stage} reads single answers; "
            "use stage rm or dpo, or another data set"
        )
    if kind == "feedback" and not has_feedback:
        raise DataError(
            f"dataset: {name!r} names no column kto_tag, but stage {stage} needs a true or false judgement for every "
            "answer; add kto_tag to the columns of its entry"
        )
    if kind == "conversation" and has_feedback:
        raise DataError(
            f"dataset: {name!r} is a feedback data set (columns.kto_tag), and stage {stage} would also imitate the "
            "answers judged bad; use stage kto, or an entry without kto_tag"
        )
