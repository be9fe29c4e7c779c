"""The tokenizer and the renderer of a run that answers: the same two objects training used.

Knows configurations, tokenizers and templates; loads no weights.
"""

from __future__ import annotations

from dataclasses import replace

from llamafactory.config import RunConfig
from llamafactory.logs import get_logger
from llamafactory.models.catalog import resolve_template
from llamafactory.models.record import RECORD_FILE
from llamafactory.models.tokenizer import TokenizerBundle, load_tokenizer
from llamafactory.rendering.renderer import Renderer, build_renderer

logger = get_logger(__name__)


def load_renderer(config: RunConfig) -> tuple[TokenizerBundle, Renderer]:
    """Load the tokenizer and build the renderer over it.

    A known model brings its chat template; an adapter of another program that brings its own keeps it.
    Stop words of the template that the tokenizer lacks are added to it and count as tokens that need embedding rows.
    """
    bundle = load_tokenizer(config)
    section = resolve_template(config, keep_own=_is_foreign(bundle))
    renderer = build_renderer(bundle.tokenizer, section, split_special_tokens=config.vocab.split_special_tokens)
    added = renderer.changes.added
    if added:
        logger.warning(
            "template: %s needs %s, which this model's tokenizer does not have; is it the model's template?",
            renderer.name,
            ", ".join(added),
        )
        bundle = replace(bundle, added_tokens=(*bundle.added_tokens, *added), must_resize=True)
    return bundle, renderer


def _is_foreign(bundle: TokenizerBundle) -> bool:
    """True when the tokenizer is that of an adapter made elsewhere, with the chat template it was trained with."""
    of_adapter = (bundle.folder / "adapter_config.json").is_file() and not (bundle.folder / RECORD_FILE).is_file()
    return of_adapter and bool(bundle.tokenizer.chat_template)
