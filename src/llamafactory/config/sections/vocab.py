"""The tokenizer and its vocabulary. Knows no template."""

from typing import ClassVar, Literal

from llamafactory.config.section import CommaList, Section, option


class VocabConfig(Section):
    """Tokenizer options, added tokens and how their embeddings start."""

    title: ClassVar[str] = "Tokenizer and vocabulary"

    use_fast_tokenizer: bool = option(True, "Use the Rust tokenizer; the Python one is tried where there is none.")
    split_special_tokens: bool | None = option(
        None,
        "Whether control tokens typed in a message are split into plain text: left out, message text is always text; "
        "false lets such tokens act as control tokens.",
    )
    resize_vocab: bool = option(False, "Grow the embeddings to the size of the tokenizer, padded to a multiple of 64.")
    add_tokens: CommaList = option((), "Ordinary tokens to add to the vocabulary, separated by commas.")
    add_special_tokens: CommaList = option((), "Control tokens to add to the vocabulary, separated by commas.")
    new_special_tokens_config: str | None = option(
        None, "YAML file of control tokens to add, each with a description; takes the place of add_special_tokens."
    )
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = option(
        "noise_init",
        "How new embedding rows start: mean of all rows plus noise, mean of the description's tokens, both.",
    )
