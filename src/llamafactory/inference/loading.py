"""The tokenizer and the renderer of a run that answers: the same two objects training used.

Knows configurations, tokenizers and templates; loads no weights.
"""

from __future__ import annotations

from dataclasses import replace

from llamafactory.config import RunConfig
from llamafactory.logs import get_logger
from llamafactory.models.tokenizer import TokenizerBundle, load_tokenizer
from llamafactory.rendering.renderer import Renderer, build_renderer

logger = get_logger(__name__)


def load_renderer(config: RunConfig) -> tuple[TokenizerBundle, Renderer]:
    """Load the tokenizer and build the renderer over it.

    Stop words of the template that the tokenizer lacks are added to it and count as tokens that need embedding rows.
    """
    bundle = load_tokenizer(config)
    renderer = build_renderer(bundle.tokenizer, config.template, split_special_tokens=config.vocab.split_special_tokens)
    added = renderer.changes.added
    if added:
        logger.warning(
            "template: %s needs %s, which this model's tokenizer does not have; is it the model's template?",
            renderer.name,
            ", ".join(added),
        )
        bundle = replace(bundle, added_tokens=(*bundle.added_tokens, *added), must_resize=True)
    return bundle, renderer
