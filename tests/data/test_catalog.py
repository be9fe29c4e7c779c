"""The registry: defaults, partial maps, precedence, and a message for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.data.catalog import DatasetEntry, load_entries, read_registry
from llamafactory.errors import DataError


def entry_of(entry: object, name: str = "set") -> DatasetEntry:
    return load_entries([name], {"set": entry}, where="dataset_info.json")[0]


def test_defaults() -> None:
    entry = entry_of({"file_name": "a.json"})
    assert (entry.source, entry.location, entry.formatting, entry.ranking) == ("file", "a.json", "alpaca", False)
    assert (entry.split, entry.subset, entry.folder, entry.num_samples) == ("train", None, None, None)
    assert (entry.columns.prompt, entry.columns.query, entry.columns.response) == ("instruction", "input", "output")
    assert (entry.columns.messages, entry.columns.system, entry.columns.kto_tag) == ("conversations", None, None)
    assert (entry.tags.role_tag, entry.tags.user_tag, entry.tags.function_tag) == ("from", "human", "function_call")


def test_every_key_is_read() -> None:
    entry = entry_of(
        {
            "hf_hub_url": "user/data", "formatting": "sharegpt", "ranking": True, "subset": "en", "split": "train[:10]",
            "folder": "python", "num_samples": 7, "columns": {"messages": "chat", "chosen": "good", "rejected": "bad"},
            "tags": {"role_tag": "role", "content_tag": "content"},
        }
    )  # fmt: skip
    assert (entry.source, entry.location, entry.subset, entry.split) == ("hf", "user/data", "en", "train[:10]")
    assert (entry.folder, entry.num_samples, entry.ranking) == ("python", 7, True)
    assert (entry.columns.messages, entry.columns.chosen, entry.columns.rejected) == ("chat", "good", "bad")


def test_partial_maps_keep_the_other_defaults() -> None:
    entry = entry_of({"file_name": "a", "columns": {"system": "sys"}, "tags": {"user_tag": "user"}})
    assert (entry.columns.prompt, entry.columns.response, entry.columns.system) == ("instruction", "output", "sys")
    assert entry.columns.given == {"system"}
    assert (entry.tags.user_tag, entry.tags.assistant_tag, entry.tags.role_tag) == ("user", "gpt", "from")


def test_empty_column_name_means_no_column() -> None:
    assert entry_of({"file_name": "a", "columns": {"query": ""}}).columns.query is None


def test_singular_media_columns_are_accepted() -> None:
    columns = entry_of({"file_name": "a", "columns": {"audio": "sound", "video": "clip", "image": "pic"}}).columns
    assert (columns.audios, columns.videos, columns.images) == ("sound", "clip", "pic")


def test_openai_words_are_its_default_tags() -> None:
    entry = entry_of({"file_name": "a", "formatting": "openai"})
    assert (entry.tags.role_tag, entry.tags.content_tag, entry.tags.observation_tag) == ("role", "content", "tool")
    assert entry.columns.messages == "messages"


@pytest.mark.parametrize(
    ("keys", "variable", "source"),
    [
        (("hf_hub_url", "ms_hub_url"), None, "hf"),
        (("hf_hub_url", "ms_hub_url"), "USE_MODELSCOPE_HUB", "modelscope"),
        (("ms_hub_url", "file_name"), None, "modelscope"),
        (("hf_hub_url", "om_hub_url"), "USE_OPENMIND_HUB", "openmind"),
        (("om_hub_url",), None, "openmind"),
        (("hf_hub_url", "cloud_file_name", "file_name"), None, "hf"),
        (("cloud_file_name", "file_name"), None, "cloud"),
        (("file_name",), None, "file"),
    ],
)
def test_precedence(keys: tuple[str, ...], variable: str | None, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    assert entry_of(dict.fromkeys(keys, "x")).source == source


def test_online_names_are_hub_ids() -> None:
    entries = load_entries(["user/data"], None, where="ONLINE")
    assert (entries[0].source, entries[0].location) == ("hf", "user/data")


def test_the_same_name_twice_is_kept_twice() -> None:
    assert len(load_entries(["set", "set"], {"set": {"file_name": "a"}}, where="x")) == 2


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"file_nam": "a"}, ("set.file_nam", "unknown key", "did you mean 'file_name'?")),
        ({"file_name": "a", "columns": {"promt": "x"}}, ("set.columns.promt", "did you mean 'prompt'?")),
        ({"file_name": "a", "tags": {"user": "x"}}, ("set.tags.user", "did you mean 'user_tag'?")),
        ({"file_name": "a", "formatting": "sharegtp"}, ("set.formatting", "did you mean 'sharegpt'?")),
        ({"file_name": "a", "ranking": "yes"}, ("set.ranking", "str 'yes'", "true or false")),
        ({"file_name": "a", "num_samples": 1.5}, ("set.num_samples", "a whole number")),
        ({"file_name": "a", "num_samples": 0}, ("set.num_samples", "1 or more")),
        ({"file_name": "a", "columns": {"prompt": 3}}, ("set.columns.prompt", "expected a string")),
        ({"file_name": "a", "columns": {"image": "x", "images": "y"}}, ("images", "named twice")),
        ({"formatting": "alpaca"}, ("set", "where the data is", "file_name")),
        ({"script_url": "loader"}, ("set.script_url", "no longer runs", "Parquet")),
        ("a.json", ("set", "expected an object")),
    ],
)
def test_mistakes_are_named(entry: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        entry_of(entry)
    for part in ("dataset_info.json", *parts):
        assert part in str(caught.value)


def test_unknown_name_is_suggested() -> None:
    with pytest.raises(DataError, match=r"'sett' is not defined.*did you mean 'set'\?"):
        entry_of({"file_name": "a"}, name="sett")


def test_missing_registry_names_one_nearby(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_info.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset_dir: .*does not exist.*there is one at .*other"):
        read_registry(tmp_path / "data" / "dataset_info.json")


@pytest.mark.parametrize(("text", "found"), [("{", "not valid JSON"), ("[]", "found a JSON list")])
def test_broken_registry(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=found):
        read_registry(path)
