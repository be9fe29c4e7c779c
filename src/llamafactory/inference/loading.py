"""The tokenizer and the renderer of a run that answers: the same two objects training used.

Knows configurations, tokenizers and templates; loads no weights.
"""

from __future__ import annotations

from dataclasses import replace

from llamafactory.config import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.logs import get_logger
from llamafactory.models.catalog import find, resolve_template
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
    _tell_missing_tokens(config, bundle, renderer)
    added = renderer.changes.added
    if added:
        bundle = replace(bundle, added_tokens=(*bundle.added_tokens, *added), must_resize=True)
    return bundle, renderer


def _tell_missing_tokens(config: RunConfig, bundle: TokenizerBundle, renderer: Renderer) -> None:
    """Say which of the template's control tokens the tokenizer lacks.

    Raises ConfigError where an unknown model's tokenizer has a chat template of its own without them.
    """
    own, changes = str(bundle.tokenizer.chat_template or ""), renderer.changes
    added = [word for word in changes.added if word not in own]
    spelled = [word for word in changes.spelled if word not in own]
    reads = [f"reads {', '.join(spelled)} as plain text"] if spelled else []
    gets = [f"gets {', '.join(added)} as tokens the model has never seen"] if added else []
    if not reads and not gets:
        return
    lacks = f"template: {renderer.name!r} is written with tokens that this model's tokenizer lacks: it "
    lacks += " and ".join((*reads, *gets))
    if own and find(config.model.model_name_or_path) is None and not config.template.allow_template_mismatch:
        raise ConfigError(
            f"{lacks}, while its own chat template is written otherwise; leave the key out "
            f"({config.place('template')}) to use that one, name the tokens in add_special_tokens to teach them, or "
            "set allow_template_mismatch: true"
        )
    logger.warning("%s; is it the model's template? add_special_tokens makes each of them one token", lacks)


def _is_foreign(bundle: TokenizerBundle) -> bool:
    """True when the tokenizer is that of an adapter made elsewhere, with the chat template it was trained with."""
    of_adapter = (bundle.folder / "adapter_config.json").is_file() and not (bundle.folder / RECORD_FILE).is_file()
    return of_adapter and bool(bundle.tokenizer.chat_template)
