"""`load_config`: equal results from every source, and every kind of fault in one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.config import load_config
from llamafactory.config.catalog import Option, options
from llamafactory.errors import ConfigError

BASE: dict[str, object] = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}

RUN = {
    **BASE,
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "a,b",
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lora_rank": 16,
    "lora_target": "q_proj,v_proj",
    "bf16": True,
    "use_fast_tokenizer": False,
    "max_samples": 1000,
    "mix_strategy": "interleave_over",
    "interleave_probs": "0.25,0.75",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "eval_delay": 3,
    "save_strategy": "no",
    "default_system": "Be brief: 1, 2.",
}


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def as_word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_every_source_gives_the_same_config(tmp_path: Path) -> None:
    expected = load_config(RUN)
    yaml_file = write(tmp_path, yaml.safe_dump(RUN))
    json_file = write(tmp_path, json.dumps(RUN), "run.json")
    pairs = [f"{key}={as_word(value)}" for key, value in RUN.items()]
    dashed = [word for key, value in RUN.items() for word in (f"--{key.replace('_', '-')}", as_word(value))]
    for source in (yaml_file, str(yaml_file), [str(yaml_file)], json_file, pairs, dashed):
        assert load_config(source) == expected
    assert expected.data.dataset == ("a", "b") and expected.training.extra == {"eval_delay": 3.0}


def simple_value(option: Option) -> st.SearchStrategy[object]:
    """Some valid value for a key, as it may stand in a file."""
    if option.choices:
        return st.sampled_from(option.choices)
    low = next((value for sign, value in option.limits if sign in {">", ">="}), -100)
    high = next((value for sign, value in option.limits if sign in {"<", "<="}), low + 10_000)
    if "bool" in option.types:
        return st.booleans()
    if "int" in option.types:
        return st.integers(int(low) + 1, int(high) - 1 if int(high) - 1 > low else int(low) + 1)
    if "float" in option.types:
        return (
            st.floats(low, high, exclude_min=True, exclude_max=True)
            .map(lambda x: round(x, 6) or 0.5)
            .filter(lambda x: low < x < high)
        )
    if "list" in option.types:
        return st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=3)
    if option.types <= {"str", "none"}:
        return st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_./ -]{0,12}[a-zA-Z0-9]", fullmatch=True)
    return st.just({"a": 1})


FREE = [
    option
    for option in options().values()
    if option.section in {"generation", "media", "lora", "vllm", "template", "swanlab", "profiler"}
    and option.key not in {"image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels"}
    and option.key not in {"pissa_init", "create_new_adapter", "lora_target_parameters"}
]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_file_arguments_and_recipe_agree(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(FREE), min_size=1, max_size=8, unique_by=lambda option: option.key))
    values = {**BASE, **{option.key: data.draw(simple_value(option), label=option.key) for option in chosen}}
    expected = load_config(values)
    words = [f"{key}={','.join(v) if isinstance(v, list) else as_word(v)}" for key, v in values.items()]
    assert load_config(words) == expected
    recipe = yaml.safe_load(yaml.safe_dump(expected.to_yaml_dict(redact=False)))
    assert load_config(recipe) == expected
    changed = yaml.safe_load(yaml.safe_dump(expected.to_yaml_dict(redact=False, only_changed=True)))
    assert load_config(changed) == expected


def test_arguments_after_a_file_win(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(RUN))
    config = load_config([str(path), "lora_rank=4", "--bf16", "false", "--lora-dropout=0.1"])
    assert (config.lora.lora_rank, config.training.bf16, config.lora.lora_dropout) == (4, False, 0.1)
    assert config.place("lora_rank") == "argument 'lora_rank'"
    assert config.place("stage").startswith(f"{path}:") and config.place("fp16") == "default"
    assert config.source_file == path


def test_text_keys_keep_what_was_written(tmp_path: Path) -> None:
    text = "model_revision: 1.10\nrun_name: 007\neval_strategy: no\ntemplate_date: 2026-01-02\n" + yaml.safe_dump(BASE)
    config = load_config(write(tmp_path, text))
    assert config.hub.model_revision == "1.10" and config.training.run_name == "007"
    assert config.training.eval_strategy == "no" and config.template.template_date == "2026-01-02"


def test_python_none_is_nothing(tmp_path: Path) -> None:
    text = "adapter_name_or_path: None\ntemplate: None\neval_dataset:\n" + yaml.safe_dump(BASE)
    config = load_config(write(tmp_path, text))
    assert config.model.adapter_name_or_path == () and config.template.template is None
    assert config.data.eval_dataset == ()


def test_paths_are_text() -> None:
    assert load_config({**BASE, "output_dir": Path("a") / "b"}).training.output_dir == str(Path("a/b"))


ONE_FAULT = [
    ("lora_rnak: 8", "run.yaml:1: lora_rnak: unknown option; did you mean 'lora_rank'?"),
    ("qqqqqqqq: 8", "run.yaml:1: qqqqqqqq: unknown option; `llamafactory-cli train --help` lists all"),
    ("lr: 1.0e-4", "run.yaml:1: lr: unknown option; did you mean 'learning_rate'?"),
    ("warmup_ration: 0.1", "run.yaml:1: warmup_ration: unknown option; did you mean 'warmup_ratio'?"),
    ("cutoff_len: long", "run.yaml:1: cutoff_len: got 'long', expected a whole number > 0 (tokens)"),
    ("cutoff_len: 0", "run.yaml:1: cutoff_len: got 0, expected a whole number > 0 (tokens)"),
    ("cutoff_len: 1.5", "run.yaml:1: cutoff_len: got 1.5, expected a whole number > 0 (tokens)"),
    ("cutoff_len: true", "run.yaml:1: cutoff_len: got true, expected a whole number > 0 (tokens)"),
    ("cutoff_len: [1, 2]", "run.yaml:1: cutoff_len: got [1, 2], expected a whole number > 0 (tokens)"),
    (
        "cutoff_len:",
        "run.yaml:1: cutoff_len: got nothing, expected a whole number > 0 (tokens); write a value",
    ),
    ("learning_rate: fast", "run.yaml:1: learning_rate: got 'fast', expected a number >= 0"),
    ("learning_rate: .nan", "run.yaml:1: learning_rate: got nan, expected a number >= 0"),
    ("bf16: maybe", "run.yaml:1: bf16: got 'maybe', expected true or false"),
    ("bf16: 2", "run.yaml:1: bf16: got 2, expected true or false"),
    ("stage: sfr", "expected one of pt, sft, rm, ppo, dpo, kto, orpo, simpo; did you mean 'sft'?"),
    ("lr_scheduler_type: cosin", "did you mean 'cosine'?"),
    ("optim: adam_torch", "did you mean 'adamw_torch'?"),
    ("ref_model_quantization_bit: 5", "got 5, expected one of 4, 8 (bits)"),
    ("interleave_probs: a,b", "run.yaml:1: interleave_probs: got 'a,b', expected words separated by commas"),
    ("vllm_config: '{broken'", "run.yaml:1: vllm_config: is not valid JSON"),
    ("lr_scheduler_kwargs: 5", "run.yaml:1: lr_scheduler_kwargs: got 5, expected a mapping or JSON text"),
    ("eval_delay: soon", "run.yaml:1: eval_delay: got 'soon', expected a number"),
    ("torch_compile: 3", "run.yaml:1: torch_compile: got 3, expected true or false"),
    ("train_sampling_strategy: sorted", "expected one of random, sequential, group_by_length, batch_rebalance"),
    (
        "save_steps: 2.5",
        "run.yaml:1: save_steps: got 2.5, expected a whole number of updates, or a share of all below 1",
    ),
    ("task: mmlu_test", "run.yaml:1: task: belongs to the command 'eval', not to 'train'"),
    (
        "batch_size: 4",
        "run.yaml:1: batch_size: belongs to the command 'eval', not to 'train'; did you mean 'per_device_",
    ),
]


@pytest.mark.parametrize(("line", "words"), ONE_FAULT, ids=[line for line, _ in ONE_FAULT])
def test_fault_is_one_line_with_its_place(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, f"{line}\n" + yaml.safe_dump(BASE))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert words in message.replace(str(tmp_path) + "/", "") and "\n" not in message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = (
        "\n".join(line for line, _ in ONE_FAULT[:1] + ONE_FAULT[4:5] + ONE_FAULT[10:11]) + "\nbf16: true\nfp16: true\n"
    )
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config([str(path), "--top_p", "7", "--lora_alpha"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: {len(lines) - 1} faults"
    for words in ("lora_rnak", "cutoff_len", "learning_rate", "fp16", "top_p", "lora_alpha", "model_name_or_path"):
        assert sum(f" {words}" in line or f"--{words}" in line for line in lines) >= 1, words
    numbered = [int(part) for part in (line.split(":")[1] for line in lines[1:]) if part.isdigit()]
    assert numbered == sorted(numbered) and len(numbered) >= 4
    assert all("run.yaml:" in line for line in lines[1 : 1 + len(numbered)])


def test_misspelt_key_silences_rules_about_the_meant_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"model_name_or_pth": "m", "datset": "d", "do_train": True, "output_dir": "o"})
    assert str(caught.value).count("\n") == 2 and "(not set)" not in str(caught.value)


def test_secret_value_is_never_shown() -> None:
    for key in ("hf_hub_token", "hub_token", "swanlab_api_key", "push_to_hub_token"):
        with pytest.raises(ConfigError) as caught:
            load_config({**BASE, key: ["hush-hush"]})
        assert "hush" not in str(caught.value) and "a hidden value" in str(caught.value)


@pytest.mark.parametrize("command", ["chat", "api", "webchat", "export"])
def test_keys_of_model_data_and_method_are_accepted_by_commands_that_use_a_model(command: str) -> None:
    keys = {"model_name_or_path": "m", "template": "llama3", "dataset": "d", "cutoff_len": 9, "lora_rank": 4}
    config = load_config({**keys, "stage": "sft", "export_dir": "e", "temperature": 0.1}, command)
    assert config.lora.lora_rank == 4 and config.command == command


def test_training_key_given_to_chat_names_its_command() -> None:
    with pytest.raises(ConfigError, match="num_train_epochs: belongs to the command 'train', not to 'chat'; remove it"):
        load_config({"model_name_or_path": "m", "num_train_epochs": 3}, "chat")


def test_eval_takes_a_seed_but_no_generation() -> None:
    config = load_config({"model_name_or_path": "m", "task": "mmlu_test", "seed": 3, "batch_size": 2}, "eval")
    assert config.training.seed == 3 and config.evaluation.batch_size == 2
    with pytest.raises(ConfigError, match=r"learning_rat: unknown .* mean 'learning_rate' of the command 'train'"):
        load_config({"model_name_or_path": "m", "export_dir": "x", "learning_rat": 1e-4}, command="export")
    with pytest.raises(ConfigError, match="temperature: belongs to the command 'train', not to 'eval'"):
        load_config({"model_name_or_path": "m", "task": "mmlu_test", "temperature": 1.0}, "eval")


def test_extra_keys_are_ignored_with_a_notice_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    config = load_config({"model_name_or_path": "m", "num_train_epochs": 3, "nonsense": 1}, "chat")
    assert config.notices == ("the options: ignored because ALLOW_EXTRA_ARGS is set: num_train_epochs, nonsense",)


def test_command_without_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="command 'version' takes no configuration"):
        load_config({}, "version")


def test_word_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is neither a file nor key=value"):
        load_config([str(tmp_path / "lora_rank")])


def test_dotted_key_of_a_plain_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank\.x: lora_rank has no inner keys"):
        load_config(["lora_rank.x=3", *(f"{key}={value}" for key, value in BASE.items())])


def test_data_folder_next_to_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there" / "data").mkdir(parents=True)
    (tmp_path / "there" / "pictures").mkdir()
    path = write(tmp_path / "there", yaml.safe_dump({**BASE, "media_dir": "pictures"}))
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.data.dataset_dir == str(tmp_path / "there" / "data")
    assert config.data.media_dir == str(tmp_path / "there" / "pictures")
    (tmp_path / "data").mkdir()
    assert load_config(path).data.dataset_dir == "data"


@pytest.mark.parametrize("value", ["ONLINE", "REMOTE:someone/sets", "s3://bucket/data"])
def test_data_that_is_no_folder_stays_as_written(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, yaml.safe_dump({**BASE, "dataset_dir": value}))
    assert load_config(path).data.dataset_dir == value
