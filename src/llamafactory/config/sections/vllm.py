"""The vLLM engine. Knows no server."""

from typing import Annotated, ClassVar

from pydantic import Field

from llamafactory.config.section import JsonMapping, Positive, Section, option


class VllmConfig(Section):
    """Engine options of vLLM."""

    title: ClassVar[str] = "vLLM engine"

    vllm_maxlen: Positive = option(4096, "Longest prompt and answer together.", unit="tokens")
    vllm_gpu_util: Annotated[float, Field(gt=0, le=1)] = option(0.7, "Share of GPU memory the engine may take.")
    vllm_enforce_eager: bool = option(False, "Do without CUDA graphs.")
    vllm_max_lora_rank: Positive = option(32, "Largest rank of an adapter.")
    vllm_config: JsonMapping | None = option(None, "Further engine arguments, as a mapping or JSON text.")
