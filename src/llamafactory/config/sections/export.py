"""Writing a model for others. Knows no file format."""

from typing import ClassVar, Literal

from llamafactory.config.section import Positive, Section, option


class ExportConfig(Section):
    """Target, shards, quantization and upload of an export."""

    title: ClassVar[str] = "Export"

    export_dir: str | None = option(None, "Folder the exported model is written to.")
    export_size: Positive = option(5, "Largest weight file.", unit="GB")
    export_device: Literal["cpu", "auto"] = option("cpu", "Where adapters are merged: CPU memory, or any accelerator.")
    export_quantization_bit: Literal[2, 3, 4, 8] | None = option(
        None, "Width of the exported weights; left out means no quantization.", unit="bits"
    )
    export_quantization_method: Literal["gptq", "awq"] = option(
        "gptq", "Format of quantized weights; awq has 4 bits and is made on a GPU only."
    )
    export_quantization_dataset: str | None = option(
        None, "Calibration text: a file, a folder or a hub data set, with documents under the key text."
    )
    export_quantization_nsamples: Positive = option(128, "Calibration samples.", unit="samples")
    export_quantization_maxlen: Positive = option(1024, "Length of a calibration sample.", unit="tokens")
    export_legacy_format: bool = option(False, "Accepted for compatibility; weights are always safetensors.")
    export_hub_model_id: str | None = option(None, "Also upload the export to this hub repository.")
