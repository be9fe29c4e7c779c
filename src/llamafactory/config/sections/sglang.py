"""The SGLang engine. Knows no server."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llamafactory.config.section import JsonMapping, Positive, Section, option


class SglangConfig(Section):
    """Engine options of SGLang."""

    title: ClassVar[str] = "SGLang engine"

    sglang_maxlen: Positive = option(4096, "Longest prompt and answer together.", unit="tokens")
    sglang_mem_fraction: Annotated[float, Field(gt=0, le=1)] = option(0.7, "Share of GPU memory the engine may take.")
    sglang_tp_size: int = option(-1, "Devices one model is spread over; -1 takes all.", unit="devices")
    sglang_config: JsonMapping | None = option(None, "Further engine arguments, as a mapping or JSON text.")
    sglang_lora_backend: Literal["triton", "flashinfer"] = option("triton", "Kernel set for adapters.")
