"""Which examples a run sees, in which mixture, and how long they may be. Knows no format and no file."""

from typing import ClassVar, Literal

from llamafactory.config.section import (
    CommaFloats,
    CommaList,
    JsonMappingOrPath,
    NonNegativeReal,
    Positive,
    Section,
    option,
)


class DataConfig(Section):
    """Data sets, mixing, truncation, packing and preprocessing."""

    title: ClassVar[str] = "Data"

    dataset: CommaList = option((), "Names of the data sets to train on, separated by commas.")
    eval_dataset: CommaList = option((), "Names of the data sets to evaluate on, separated by commas.")
    dataset_dir: JsonMappingOrPath = option(
        "data",
        "Folder with dataset_info.json; ONLINE makes names hub ids, REMOTE:<repository> fetches the file. A mapping is "
        "the content of dataset_info.json itself, with file names from the working directory.",
    )
    media_dir: str | None = option(None, "Folder that relative media paths start from; dataset_dir by default.")
    cutoff_len: Positive = option(2048, "Longest example; longer ones are handled as truncation says.", unit="tokens")
    truncation: Literal["balanced", "tail", "prompt", "drop", "error"] = option(
        "balanced",
        "What happens to an example longer than cutoff_len: shorten prompt and answer in proportion, cut the end, "
        "cut the prompt, drop it, or stop.",
    )
    train_on_prompt: bool = option(False, "Also learn the prompt, not only the answers.")
    mask_history: bool = option(False, "Learn only the last answer of a conversation.")
    streaming: bool = option(False, "Read examples while training instead of preparing all of them first.")
    buffer_size: Positive = option(16384, "Shuffle buffer of a streamed data set.", unit="examples")
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = option(
        "concat",
        "How data sets are joined: one after the other, or drawn in turn until the first is used up (under), "
        "all are used up with repeats (over), or all are used up without repeats (once).",
    )
    interleave_probs: CommaFloats = option((), "Probability of each data set when interleaving, separated by commas.")
    overwrite_cache: bool = option(False, "Prepare the data again even when a cache of it exists.")
    preprocessing_batch_size: Positive = option(
        1000, "Examples prepared at a time; packing works within one such batch.", unit="examples"
    )
    preprocessing_num_workers: Positive | None = option(
        None, "Processes that prepare the data; one by default.", unit="processes"
    )
    max_samples: Positive | None = option(
        None, "Use at most the first so many examples of each data set.", unit="examples"
    )
    eval_num_beams: Positive | None = option(None, "Beams when predicting with generation.")
    ignore_pad_token_for_loss: bool = option(True, "Leave padding out of the loss.")
    val_size: NonNegativeReal = option(
        0.0, "Part of the data kept for validation: a count from 1 upwards, below 1 a share.", unit="examples or share"
    )
    eval_on_each_dataset: bool = option(False, "Evaluate every evaluation data set on its own.")
    packing: bool | None = option(None, "Fill sequences with several examples; left out, only stage pt does so.")
    neat_packing: bool = option(False, "Synonym of packing: packed examples never see each other.")
    tokenized_path: str | None = option(None, "Folder of prepared data: read when it exists, else written.")
    data_shared_file_system: bool = option(
        False, "All machines share one file system, so one process prepares the data."
    )
    on_bad_example: Literal["error", "skip"] = option(
        "error", "What a row that cannot be used does: stop the run, or be skipped, counted and reported."
    )
    batch_layout: Literal["auto", "padded", "flat"] = option(
        "auto", "Layout of a batch: padded rows, or one flat row without padding; auto takes the faster that works."
    )
