"""Encoding: rows to token columns of each kind, masked and weighted as asked, with every loss counted and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.encode import Encoder, Limits
from llamafactory.data.examples import Chunk
from llamafactory.data.kinds import Kind, check_kind, kind_of
from llamafactory.errors import DataError
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.tokens import IGNORE_INDEX

MakeEntry = Callable[..., DatasetEntry]
TWO_TURNS = {"instruction": "c", "input": "", "output": "last answer", "past": [["a", "first answer"]]}
ALPACA = {"columns": {"history": "past", "system": "sys"}}


@pytest.fixture
def encode(make_entry: MakeEntry, renderer: Renderer) -> Callable[..., Chunk]:
    def run(
        rows: Sequence[object], *, kind: Kind = "conversation", limits: Limits | None = None, **entry: object
    ) -> Chunk:
        encoder = Encoder(make_entry(**entry), kind, renderer, limits or Limits(2048))
        return encoder([(f"set.json:{number}", row) for number, row in enumerate(rows, 1)])  # type: ignore[misc]

    return run


def learnt(tokenizer: PreTrainedTokenizerFast, chunk: Chunk, column: str = "labels") -> str:
    return tokenizer.decode([label for label in chunk.examples[0].columns[column] if label != IGNORE_INDEX])


def prompt_length(labels: list[int]) -> int:
    return next(at for at, label in enumerate(labels) if label != IGNORE_INDEX)


def test_answers_are_learnt_up_to_the_stop_token(
    encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast
) -> None:
    chunk = encode([TWO_TURNS], **ALPACA)
    assert learnt(tokenizer, chunk) == "first answer<|im_end|>last answer<|im_end|>"
    assert chunk.examples[0].source == "set.json:1"
    assert (chunk.report.read, chunk.report.kept) == (1, 1)
    assert chunk.report.tokens == len(chunk.examples[0].columns["input_ids"])


def test_mask_history_and_train_on_prompt(encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast) -> None:
    masked = encode([TWO_TURNS], limits=Limits(2048, mask_history=True), **ALPACA)
    assert learnt(tokenizer, masked) == "last answer<|im_end|>"
    whole = encode([TWO_TURNS], limits=Limits(2048, train_on_prompt=True), **ALPACA)
    assert learnt(tokenizer, whole).startswith("<|im_start|>user\na<|im_end|>")


def test_loss_of_a_message_weighs_its_tokens(encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "no", "loss": False},
             {"from": "human", "value": "b"}, {"from": "gpt", "value": "half", "loss": 0.5}]  # fmt: skip
    chunk = encode([{"conversations": turns}], formatting="sharegpt")
    assert learnt(tokenizer, chunk) == "half<|im_end|>"
    assert set(chunk.examples[0].weights or ()) == {0.0, 0.5}


def test_system_prompt_makes_a_difference(encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast) -> None:
    chunk = encode([{**TWO_TURNS, "sys": "SYS"}], **ALPACA)
    assert "SYS" in tokenizer.decode(chunk.examples[0].columns["input_ids"])


def test_preference(encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"instruction": "q", "chosen": "good", "rejected": "very bad"}
    options = {"ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    chunk = encode([row], kind="preference", **options)
    assert learnt(tokenizer, chunk, "chosen_labels") == "good<|im_end|>"
    assert learnt(tokenizer, chunk, "rejected_labels") == "very bad<|im_end|>"
    columns = chunk.examples[0].columns
    start = prompt_length(columns["chosen_labels"])
    assert start == prompt_length(columns["rejected_labels"]) > 0
    assert columns["chosen_input_ids"][:start] == columns["rejected_input_ids"][:start]


def test_preference_sides_are_cut_alike(encode: Callable[..., Chunk]) -> None:
    row = {"instruction": "q " * 60, "chosen": "good " * 80, "rejected": "bad"}
    options = {"ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    chunk = encode([row], kind="preference", limits=Limits(40), **options)
    columns = chunk.examples[0].columns
    assert len(columns["chosen_input_ids"]) == 40
    assert chunk.report.truncated.first == ["set.json:1"]
    start = prompt_length(columns["chosen_labels"])
    assert start == prompt_length(columns["rejected_labels"]) > 0
    assert columns["chosen_input_ids"][:start] == columns["rejected_input_ids"][:start]
    dropped = encode([row], kind="preference", limits=Limits(40, "drop"), **options)
    assert dropped.report.dropped["longer than cutoff_len"].first == ["set.json:1"]


def test_feedback_prompt_and_text(encode: Callable[..., Chunk], tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"instruction": "q", "output": "a", "ok": False}
    judged = encode([row], kind="feedback", columns={"kto_tag": "ok"}).examples[0]
    assert judged.desirable is False
    asked = encode([row], kind="prompt").examples[0]
    assert tokenizer.decode(asked.columns["input_ids"]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(asked.columns["labels"]).startswith("a<|im_end|>")
    text = encode([{"text": "some words"}, {"text": ""}], kind="text", columns={"prompt": "text"})
    assert tokenizer.decode(text.examples[0].columns["input_ids"]).startswith("some words")
    assert text.examples[0].columns["labels"] == text.examples[0].columns["input_ids"]
    assert text.report.dropped["empty text"].first == ["set.json:2"]


def test_prompt_without_answer_is_cut_to_the_limit(encode: Callable[..., Chunk]) -> None:
    chunk = encode([{"instruction": "q " * 100}], kind="prompt", limits=Limits(30))
    assert len(chunk.examples[0].columns["input_ids"]) == 30
    assert chunk.report.truncated.count == 1


def test_bad_rows_are_counted_and_the_others_kept(encode: Callable[..., Chunk]) -> None:
    good = {"instruction": "q", "output": "a"}
    chunk = encode([good, {"instruction": "q"}, DataError("set.json:3: broken line"), good])
    assert [example.source for example in chunk.examples] == ["set.json:1", "set.json:4"]
    assert (chunk.report.num_bad, chunk.report.read) == (2, 4)
    assert "set.json:2: field 'output'" in chunk.report.bad[0]


def test_row_that_the_renderer_refuses_is_found(encode: Callable[..., Chunk]) -> None:
    def talk(call: str) -> dict[str, object]:
        turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": call}]
        return {"conversations": turns}

    good = '{"name": "f", "arguments": {}}'
    chunk = encode([talk(good), talk("call f please"), talk(good)], formatting="sharegpt")
    assert [example.source for example in chunk.examples] == ["set.json:1", "set.json:3"]
    assert chunk.report.num_bad == 1
    assert "set.json:2" in chunk.report.bad[0]


def test_examples_without_anything_to_learn_are_dropped(encode: Callable[..., Chunk]) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "loss": 0}]
    chunk = encode([{"conversations": turns}], formatting="sharegpt")
    assert chunk.examples == []
    assert chunk.report.dropped["no supervised token is left"].first == ["set.json:1"]
    with pytest.raises(DataError, match=r"set: not one of 1 rows.*1 x no supervised token is left; first: set\.json:1"):
        chunk.report.raise_if_empty("set")


def test_media_are_refused_rather_than_lost(encode: Callable[..., Chunk]) -> None:
    with pytest.raises(DataError, match=r"set\.json:1: the row has images"):
        encode([{"instruction": "<image>", "output": "a", "pics": ["x.png"]}], columns={"images": "pics"})


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("pt", "text"),
        ("sft", "conversation"),
        ("rm", "preference"),
        ("dpo", "preference"),
        ("kto", "feedback"),
        ("ppo", "prompt"),
    ],
)
def test_kind_of_a_stage(stage: str, kind: str) -> None:
    assert kind_of(stage) == kind


@pytest.mark.parametrize(
    ("kind", "ranking", "feedback", "message"),
    [
        ("preference", False, False, "has no ranking: true"),
        ("conversation", True, False, "is a preference data set"),
        ("feedback", False, False, "names no column kto_tag"),
        ("conversation", False, True, "is a feedback data set"),
    ],
)
def test_set_of_another_kind_is_refused(kind: Kind, ranking: bool, feedback: bool, message: str) -> None:
    with pytest.raises(DataError, match=f"dataset: 'set' {message}"):
        check_kind(kind, name="set", ranking=ranking, has_feedback=feedback, stage="x")
