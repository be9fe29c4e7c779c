"""The table of transformers' training arguments agrees with the installed version, and what we hand on is accepted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import transformers
from transformers import Seq2SeqTrainingArguments

from llamafactory.config import load_config
from llamafactory.config.catalog import hf_arguments, options
from llamafactory.config.renamed import renamed_keys

ROOT = Path(__file__).parents[2]
BASE = {"model_name_or_path": "m", "dataset": "d", "do_train": True}


def test_table_is_that_of_the_installed_version() -> None:
    spec = importlib.util.spec_from_file_location("generator", ROOT / "scripts" / "generate_hf_arguments.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    stored = json.loads(generator.TARGET.read_text(encoding="utf-8"))
    if stored["transformers"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {stored['transformers']}")
    assert generator.build_table() == stored


def test_every_argument_is_an_option_or_translated() -> None:
    assert [name for name in hf_arguments() if name not in options() and name not in renamed_keys()] == []


def test_our_defaults_are_those_of_transformers() -> None:
    different = []
    for name, entry in hf_arguments().items():
        option = options().get(name)
        if option is not None and not option.passed_on:
            default = ",".join(option.default) if isinstance(option.default, tuple) else option.default
            if default != entry["default"]:
                different.append(name)
    assert different == []


def test_chosen_values_reach_transformers(tmp_path: Path) -> None:
    config = load_config(
        {
            **BASE,
            "output_dir": str(tmp_path),
            "warmup_ratio": 0.1,
            "overwrite_output_dir": True,
            "report_to": "none",
            "logging_steps": 5,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-6},
            "eval_delay": 2,
            "use_cpu": True,
            "torch_empty_cache_steps": 3,
            "include_num_input_tokens_seen": True,
        }
    )
    arguments = Seq2SeqTrainingArguments(**config.training.to_hf_kwargs())
    assert arguments.warmup_steps == 0.1
    assert arguments.logging_steps == 5
    assert arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert arguments.eval_delay == 2
    assert arguments.torch_empty_cache_steps == 3
    assert arguments.include_num_input_tokens_seen == "all"
    assert arguments.report_to == []


def test_only_chosen_values_are_handed_on() -> None:
    config = load_config({**BASE, "output_dir": "o", "adam_beta1": 0.8})
    assert config.training.to_hf_kwargs() == {"output_dir": "o", "do_train": True, "adam_beta1": 0.8}


def test_all_values_of_a_recipe_are_accepted(tmp_path: Path) -> None:
    first = load_config({**BASE, "output_dir": str(tmp_path), "use_cpu": True})
    again = load_config(first.to_yaml_dict())
    arguments = Seq2SeqTrainingArguments(**again.training.to_hf_kwargs())
    assert arguments.learning_rate == 5e-5 and arguments.report_to == []
