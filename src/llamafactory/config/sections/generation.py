"""How answers are sampled. Knows no engine."""

from typing import Annotated, ClassVar

from pydantic import Field

from llamafactory.config.section import INFER, TRAIN, NonNegativeReal, Positive, PositiveReal, Section, Whole, option


class GenerationConfig(Section):
    """Sampling options of chat, api and prediction."""

    title: ClassVar[str] = "Generation"
    commands: ClassVar[tuple[str, ...]] = (*TRAIN, *INFER)

    do_sample: bool = option(True, "Draw tokens at random; false takes the likeliest one.")
    temperature: NonNegativeReal = option(0.95, "Flatter (above 1) or steeper (below 1) distribution.")
    top_p: Annotated[float, Field(gt=0, le=1)] = option(0.7, "Keep the likeliest tokens up to this total probability.")
    top_k: Annotated[int, Field(ge=-1)] = option(50, "Keep at most so many tokens; 0 and -1 keep all.", unit="tokens")
    num_beams: Positive = option(1, "Beams of beam search; 1 is no beam search.")
    max_length: Positive = option(
        1024, "Longest prompt and answer together; unused when max_new_tokens is set.", unit="tokens"
    )
    max_new_tokens: Whole = option(1024, "Longest answer; 0 leaves the limit to max_length.", unit="tokens")
    repetition_penalty: PositiveReal = option(1.0, "Above 1 makes tokens already seen less likely.")
    length_penalty: float = option(1.0, "Exponent of the length in beam search.")
    skip_special_tokens: bool = option(True, "Leave control tokens out of the answer's text.")
