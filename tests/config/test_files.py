"""YAML and JSON files: lines, types as written, and refusal of what is unsafe or ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.config.files import MAX_FILE_BYTES, parse_flow, read_file
from llamafactory.errors import ConfigError


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_values_know_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, "# comment\nlora_rank: 8\n\nstage: sft\n")
    found = {item.key: item for item in read_file(path)}
    assert found["lora_rank"].value == 8 and found["lora_rank"].place == f"{path}:2"
    assert found["stage"].place == f"{path}:4"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", ".1e-3"])
def test_short_exponents_are_numbers(tmp_path: Path, text: str) -> None:
    (item,) = read_file(write(tmp_path, f"learning_rate: {text}\n"))
    assert item.value == pytest.approx(1e-4)


def test_numbers_inside_mappings_are_numbers(tmp_path: Path) -> None:
    (item,) = read_file(write(tmp_path, "lr_scheduler_kwargs: {min_lr: 1e-6}\n"))
    assert item.value == {"min_lr": 1e-6}


def test_dates_stay_text(tmp_path: Path) -> None:
    (item,) = read_file(write(tmp_path, "template_date: 2026-01-02\n"))
    assert item.value == "2026-01-02"


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    path = write(tmp_path, "lr_scheduler_kwargs: &a {x: 1}\nfsdp_config: *a\n")
    assert [item.value for item in read_file(path)] == [{"x": 1}, {"x": 1}]


def test_empty_file_has_no_values(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, "# nothing\n")) == []
    assert read_file(write(tmp_path, "", "run.json")) == []


def test_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfstage: pt\n")
    assert [item.key for item in read_file(path)] == ["stage"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "run.yaml:3: is not valid YAML: the key 'a' was given before, on line 1; keep one"),
        ("a: {x: 1, x: 2}\n", "run.yaml:1: is not valid YAML: the key 'x' was given before"),
        ("- a\n- b\n", "run.yaml:1: is not valid YAML: the file must hold `key: value` lines"),
        ("a: [1\nb: 2\n", "run.yaml:2: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: is not valid YAML"),
        ("[a, b]: 1\n", "a key must be one word"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: &x [*x]\n", "an alias points at a value that contains it"),
        ("a: " + "[" * 60 + "]" * 60 + "\n", "nested more than 40 deep"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_file(write(tmp_path, text))
    assert words in str(caught.value)


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="the aliases expand to more than 20000 values"):
        read_file(write(tmp_path, "\n".join(lines)))


def test_deep_nesting_does_not_crash(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested more than 40 deep"):
        read_file(write(tmp_path, "a: " + "[" * 1500))


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, "# " + "x" * MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=r"the file has .* bytes, a configuration may have"):
        read_file(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read \(No such file or directory\)"):
        read_file(tmp_path / "gone.yaml")


def test_other_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("default_system: 你好\n".encode("gbk"))
    with pytest.raises(ConfigError, match="byte 16 is not UTF-8; save the file as UTF-8"):
        read_file(path)


def test_json_knows_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '{\n  "stage": "pt",\n  "learning_rate": 1e-4\n}\n', "run.json")
    found = read_file(path)
    assert [(item.key, item.value, item.place) for item in found] == [
        ("stage", "pt", f"{path}:2"),
        ("learning_rate", 1e-4, f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n "a": 2}', "the key 'a' is given twice; keep one"),
        ('{"a": 1,\n "b" 2}', "run.json:2: is not valid JSON"),
        ("[1, 2]", "the file must hold one JSON object, got list"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_bad_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_file(write(tmp_path, text, "run.json"))
    assert words in str(caught.value)


def test_flow_values_are_parsed() -> None:
    assert parse_flow("{a: 1e-3, b: [x]}") == {"a": 1e-3, "b": ["x"]}
    assert parse_flow("") is None
    with pytest.raises(ValueError, match="is not valid YAML"):
        parse_flow("{a: ")
