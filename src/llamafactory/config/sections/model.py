"""Which weights a run starts from and how they are read. Knows no hub and no adapter method."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, Section, option


class ModelConfig(Section):
    """Base weights, adapters given by the user, and the engine that answers."""

    title: ClassVar[str] = "Model"

    model_name_or_path: str | None = option(None, "Base weights: a local folder or the name of a hub repository.")
    adapter_name_or_path: CommaList = option(
        (), "Adapters to load, in order, separated by commas; all but the last are merged into the base."
    )
    adapter_folder: str | None = option(None, "Folder inside the adapter repository that holds the adapter files.")
    train_from_scratch: bool = option(False, "Start from random weights built from the model's config alone.")
    low_cpu_mem_usage: bool = option(True, "Create the model without memory first and fill it while reading the files.")
    offload_folder: str = option("offload", "Folder for weights that fit neither on the accelerators nor in memory.")
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = option(
        "auto", "Number format of the weights in chat, api and export; auto keeps that of the checkpoint."
    )
    infer_backend: Literal["huggingface", "vllm", "sglang"] = option(
        "huggingface", "Engine that generates text; training always uses huggingface."
    )
    print_param_status: bool = option(
        False, "Print name, dtype, device and trainability of every parameter after loading."
    )
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = option(
        None, "Method that stretches the rotary position embedding beyond the length the model was trained with."
    )
    mixture_of_depths: Literal["convert", "load"] | None = option(
        None, "Mixture-of-depths: convert a plain model, or load a converted one."
    )
