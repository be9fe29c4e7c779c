"""The models this project knows by name: their ids on three hubs and the chat template each was trained with.

The facts are in `catalog.yaml`, read when first asked for. Knows configurations and templates; no weights, no hub.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llamafactory.errors import ConfigError
from llamafactory.logs import notice
from llamafactory.rendering.template import Template, templates

if TYPE_CHECKING:
    from llamafactory.config.run import RunConfig
    from llamafactory.config.sections.template import TemplateConfig

HUBS = ("hf", "ms", "om")
_NEVER_WRITTEN = frozenset({"name", "media", "replace_jinja_template"})
_OF_REASONING = frozenset({"reasoning", "empty_thought", "thought_words"})
_OF_ENDINGS = frozenset({"stop_words", "efficient_eos", "replace_eos", "text_end"})


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model.

    hf, ms, om: its ids on Hugging Face, ModelScope and Modelers. family_template: what it and its relatives use.
    multimodal: it also reads images, video or sound. base: it has not learnt the template.
    """

    name: str
    hf: str | None
    ms: str | None
    om: str | None
    family_template: str | None
    multimodal: bool
    base: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids it has, each once."""
        return tuple(dict.fromkeys(name for name in (self.hf, self.ms, self.om) if name))

    @property
    def template(self) -> str | None:
        """What is used when a run names no template; None for base models, unless they are multimodal."""
        return None if self.base and not self.multimodal else self.family_template


@functools.cache
def _text() -> str:
    return Path(__file__).with_name("catalog.yaml").read_text(encoding="utf-8")


@functools.cache
def models() -> tuple[CatalogModel, ...]:
    """All models, those of one template together."""
    groups = yaml.load(_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return tuple(model for group in groups for model in _models_of(group))


def _models_of(group: Mapping[str, Mapping[str, str | Mapping[str, str]]]) -> Iterator[CatalogModel]:
    for kind in ("chat", "base"):
        for name, given in group.get(kind, {}).items():
            ids = {"hf": given, "ms": given} if isinstance(given, str) else given
            yield CatalogModel(
                name=name,
                hf=ids.get("hf"),
                ms=ids.get("ms"),
                om=ids.get("om"),
                family_template=group.get("template"),  # type: ignore[arg-type]
                multimodal=bool(group.get("multimodal")),
                base=kind == "base",
            )


@functools.cache
def _by_id() -> Mapping[str, CatalogModel]:
    """Models by lower-case id; of two that share one, the first on the earliest hub."""
    found: dict[str, CatalogModel] = {}
    for hub in HUBS:
        for model in models():
            name = getattr(model, hub)
            if name:
                found.setdefault(name.lower(), model)
    return found


def find(model_name: str | None) -> CatalogModel | None:
    """The model that has exactly this id on one of the hubs, whatever the case of its letters."""
    if not model_name or model_name.count("/") != 1:  # no hub id, so the file need not be read
        return None
    if model_name.lower() not in _text().lower():  # ids stand there as they are, so the file need not be parsed
        return None
    return _by_id().get(model_name.lower())


def template_for(model_name: str | None) -> str | None:
    """The chat template of a known model; None for a base model and for one that is not known."""
    model = find(model_name)
    return model.template if model else None


def search(words: str) -> list[CatalogModel]:
    """Models whose names and ids hold every one of `words`, whatever the case; all for an empty text."""
    wanted = words.lower().split()
    return [model for model in models() if all(word in " ".join((model.name, *model.ids)).lower() for word in wanted)]


def nearest(words: str, *, limit: int = 5) -> list[str]:
    """Names of the models that are written most like `words`, best first."""
    spelled = {model.name.lower(): model.name for model in models()}
    spelled |= {name.lower(): model.name for model in models() for name in model.ids}
    near = difflib.get_close_matches(words.lower().strip(), spelled, n=2 * limit, cutoff=0.5)
    return list(dict.fromkeys(spelled[word] for word in near))[:limit]


def resolve_template(config: RunConfig, *, keep_own: bool = False) -> TemplateConfig:
    """The template section a run is rendered with: a known model brings its template where the run names none.

    The config stays as it is. keep_own: the tokenizer has a chat template that is not the model's, and that counts.
    Raises ConfigError when the run's template contradicts the one a known model was trained with.
    """
    section, model = config.template, find(config.model.model_name_or_path)
    if model is None:
        return section
    if model.multimodal:
        notice(f"model_name_or_path: {model.name} also reads images, video or sound; here it reads text only")
    if section.template is not None:
        _refuse_contradiction(config, model, section.template)
        return section
    if keep_own or model.template is None or _markup(model.template) is None:
        return section
    notice(f"template: left out, so {model.template!r} is used, which {model.name} was trained with")
    return section.model_copy(update={"template": model.template})


def _markup(name: str | None) -> Template | None:
    """The template called `name`; None for `empty`, which says that the tokenizer's own is the one to use."""
    return None if name in (None, "empty") else templates().get(str(name))


def _refuse_contradiction(config: RunConfig, model: CatalogModel, given: str) -> None:
    expected, actual = _markup(model.family_template), templates().get(given)
    if model.base or config.model.train_from_scratch or expected is None or actual is None:
        return
    if _agree(expected, actual):
        return
    if _agree(expected, actual, ignored=_OF_ENDINGS):
        notice(
            f"template: {given!r} writes the text {model.name} was trained with ({expected.name!r}) and ends answers "
            "in another way"
        )
        return
    if config.template.allow_template_mismatch:
        notice(f"template: {given!r} is used as allowed, although {model.name} was trained with {expected.name!r}")
        return
    place = config.place("template")
    raise ConfigError(
        f"template: {given!r}{f' ({place})' if place != 'default' else ''} is not what {model.name} was trained with, "
        f"{expected.name!r} is, and other markup costs what it has learnt; set template: {expected.name}, leave the "
        "key out, or set allow_template_mismatch: true to use it all the same"
    )


def _agree(expected: Template, given: Template, *, ignored: frozenset[str] = frozenset()) -> bool:
    """True when both write the same text; reasoning may be switched off by the template, never on."""
    ignored |= _NEVER_WRITTEN
    if expected.reasoning and not given.reasoning:
        ignored |= _OF_REASONING
    names = [field.name for field in fields(Template) if field.name not in ignored]
    return all(getattr(expected, name) == getattr(given, name) for name in names)
