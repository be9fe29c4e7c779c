"""The vllm engine without vLLM: its arguments, its refusals, and how outputs are read.

scripts/check_vllm.py runs it for real, in an environment that has vLLM.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llamafactory.config import load_config
from llamafactory.errors import ConfigError, MissingPackageError
from llamafactory.inference.engine import GenerationOptions, build_engine
from llamafactory.inference.engines import vllm
from llamafactory.inference.foreign import Source, refuse_options
from llamafactory.inference.sampling import Token

SOURCE = Source(Path("/m"), None, 512, "")


def arguments(source: Source = SOURCE, **keys: object) -> dict[str, object]:
    config = load_config({"model_name_or_path": "m", "infer_backend": "vllm", **keys}, command="chat")
    return vllm.engine_arguments(config, source)


def test_engine_arguments_carry_the_options_and_the_mapping_wins() -> None:
    found = arguments(
        vllm_maxlen=300, vllm_gpu_util=0.5, vllm_enforce_eager=True, infer_dtype="bfloat16",
        vllm_config='{"max_num_seqs": 8, "enforce_eager": false}',
    )  # fmt: skip
    assert found["model"] == "/m"
    assert (found["max_model_len"], found["gpu_memory_utilization"], found["dtype"]) == (300, 0.5, "bfloat16")
    assert (found["max_num_seqs"], found["enforce_eager"]) == (8, False)
    assert "enable_lora" not in found


def test_the_models_positions_limit_the_length() -> None:
    assert arguments()["max_model_len"] == 512
    assert arguments(replace(SOURCE, max_positions=None))["max_model_len"] == 4096


def test_gptq_means_float16_unless_a_format_is_given() -> None:
    quantized = replace(SOURCE, quantization="gptq")
    assert arguments(quantized)["dtype"] == "float16"
    assert arguments(quantized, infer_dtype="bfloat16")["dtype"] == "bfloat16"
    assert arguments()["dtype"] == "auto"


def test_an_adapter_switches_lora_on_and_its_rank_is_checked(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64}), encoding="utf-8")
    source = replace(SOURCE, adapter=tmp_path)
    assert arguments(source, vllm_max_lora_rank=64) == {**arguments(), "enable_lora": True, "max_lora_rank": 64}
    with pytest.raises(ConfigError, match="has rank 64 and the limit is 32; set vllm_max_lora_rank: 64"):
        arguments(source)


def test_sampling_arguments() -> None:
    options = GenerationOptions(
        temperature=0.5, top_p=0.6, top_k=7, seed=3, presence_penalty=0.1, frequency_penalty=0.2, top_logprobs=2
    )
    assert vllm.sampling_arguments(options, 9, (7, 8)) == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.6, "top_k": 7, "seed": 3, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repetition_penalty": 1.0, "logprobs": 2, "stop_token_ids": [7, 8],
        "ignore_eos": True,
    }  # fmt: skip
    greedy = vllm.sampling_arguments(replace(options, do_sample=False, json_schema="{}"), 9, (7,))
    assert (greedy["temperature"], greedy["top_p"], greedy["top_k"], greedy["ignore_eos"]) == (0.0, 1.0, 0, False)
    assert greedy["json_schema"] == '{"type": "object"}'
    with pytest.raises(ConfigError, match="json_schema: got text that is no JSON"):
        vllm.sampling_arguments(replace(options, json_schema="{"), 9, (7,))


def test_beam_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_beams: vllm has no beam search, got 3; set num_beams: 1"):
        refuse_options(GenerationOptions(num_beams=3), "vllm")


@dataclass
class Place:
    """The shape of vLLM's log-probability of one token."""

    logprob: float
    rank: int


@dataclass
class Output:
    """The shape of vLLM's completion output."""

    token_ids: list[int]
    logprobs: list[dict[int, Place]] | None


def test_outputs_become_tokens() -> None:
    assert vllm.tokens_of(Output([4, 5], None)) == [Token(4), Token(5)]
    places = {4: Place(-2.0, 9), 6: Place(-0.5, 1), 7: Place(-1.0, 2)}
    assert vllm.tokens_of(Output([4], [places]), 2) == [Token(4, -2.0, ((6, -0.5), (7, -1.0)))]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_the_package_the_install_command_is_told(model_dir: Path) -> None:
    config = load_config({"model_name_or_path": str(model_dir), "infer_backend": "vllm"}, command="chat")
    with pytest.raises(MissingPackageError, match=r"infer_backend: vllm needs the package 'vllm'.*pip install vllm"):
        build_engine(config)
