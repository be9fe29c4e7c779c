"""Quantizing a base model while it is loaded. Knows no adapter."""

from typing import ClassVar, Literal

from llamafactory.config.section import Positive, Section, option


class QuantizationConfig(Section):
    """On-the-fly quantization of the base weights."""

    title: ClassVar[str] = "Quantization"

    quantization_method: Literal["bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8", "torchao"] = (
        option("bnb", "Quantizer while loading: bnb, hqq, eetq or torchao; the others are recognised in a checkpoint.")
    )
    quantization_bit: Positive | None = option(
        None, "Width of the quantized weights; left out means no quantization.", unit="bits"
    )
    quantization_type: Literal["fp4", "nf4"] = option("nf4", "4-bit number format of bnb.")
    double_quantization: bool = option(True, "Also quantize the scales of bnb's 4-bit format.")
    quantization_device_map: Literal["auto"] | None = option(
        None, "auto spreads a 4-bit model over all devices; only for inference with bnb."
    )
    quantization_aware: bool = option(
        False, "Train whole weights as they will be once torchao rounds them; quantization_bit then holds at inference."
    )
