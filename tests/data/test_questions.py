"""What becomes a question and what its reference, for every kind of data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory.config import load_config
from llamafactory.config.run import RunConfig
from llamafactory.data.questions import read_questions
from llamafactory.errors import DataError

CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
FILES: dict[str, tuple[dict[str, object], list[dict[str, object]]]] = {
    "plain": (
        {"columns": {"history": "history"}},
        [{"instruction": "q1", "output": "a1", "history": [["h", "i"]]}, {"instruction": "q2"}],
    ),
    "pairs": ({"ranking": True}, [{"instruction": "q", "chosen": "good", "rejected": "bad"}]),
    "judged": (
        {"columns": {"kto_tag": "tag"}},
        [{"instruction": "q", "output": f"a{tag}", "tag": tag} for tag in (True, False)],
    ),
    "talk": (
        {"formatting": "openai"},
        [{"messages": [{"role": "user", "content": "u"}, CALL]}, {"messages": [{"role": "user", "content": "only"}]}],
    ),
    "bad": ({}, [{"instruction": "q", "output": "a"}, {"instruction": 3}]),
    "empty": ({}, []),
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    registry = {}
    for name, (entry, rows) in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        registry[name] = {"file_name": f"{name}.jsonl", **entry}
    (tmp_path / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    keys = {"model_name_or_path": "x", "output_dir": "o", "eval_dataset": "plain", "dataset_dir": str(tmp_path)}
    return load_config(keys, command="predict")


def found(config: RunConfig, *names: str) -> list[tuple[list[str], str, str]]:
    prompts = [question.prompt for question in read_questions(config, names)]
    return [([m.content for m in p.conversation.messages], p.reference, p.reference_role) for p in prompts]


def test_the_last_answer_is_the_reference_and_may_be_missing(config: RunConfig) -> None:
    assert found(config, "plain") == [(["h", "i", "q1"], "a1", "assistant"), (["q2"], "", "assistant")]


def test_comparisons_and_judgements_give_their_good_answers(config: RunConfig) -> None:
    assert found(config, "pairs") == [(["q"], "good", "assistant")]
    assert found(config, "judged") == [(["q"], "aTrue", "assistant"), (["q"], "", "assistant")]


def test_tool_calls_stay_tool_calls(config: RunConfig) -> None:
    call = json.dumps([{"name": "add", "arguments": {"a": 1}}])
    assert found(config, "talk") == [(["u"], call, "function"), (["only"], "", "assistant")]


def test_sets_follow_each_other_and_know_their_names(config: RunConfig) -> None:
    questions = read_questions(config, ("pairs", "plain"))
    assert [question.dataset for question in questions] == ["pairs", "plain", "plain"]
    assert questions[1].prompt.source.endswith("plain.jsonl:1")


def test_bad_rows_stop_the_run_or_are_skipped(config: RunConfig) -> None:
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        read_questions(config, ("bad",))
    skipping = config.data.model_copy(update={"on_bad_example": "skip"})
    assert len(read_questions(RunConfig(data=skipping), ("bad",))) == 1


def test_nothing_to_ask_is_an_error(config: RunConfig) -> None:
    with pytest.raises(DataError, match="empty: no row can be answered"):
        read_questions(config, ("empty",))
