"""Text to ids: a private copy of the Rust tokenizer that reads message text as text and control tokens as ids.

A text is cut into segments between control tokens; each segment is encoded so that its ids are those of the whole
string: SentencePiece-like tokenizers put a blank in front of some segments and not of others. Knows no templates.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from llamafactory.errors import ConfigError, ModelError
from llamafactory.rendering.tokens import Piece

Place = Literal["start", "control", "text"]
"""What stands before a segment: nothing, a control token, or other text."""

_EACH: frozenset[Place] = frozenset({"start", "control"})
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """The blank a tokenizer puts in front of text.

    places: before which segments. mark: what it puts. always: also where the text begins with a blank already.
    """

    places: frozenset[Place] = frozenset()
    mark: str = ""
    always: bool = False

    def apply(self, text: str, place: Place) -> str:
        """`text` with the mark the tokenizer would put in front of it."""
        if place not in self.places or not text:
            return text
        return text if not self.always and text.startswith((" ", self.mark)) else self.mark + text


class TextEncoder:
    """Encodes segments of text in whole batches; looks up control tokens.

    The caller's tokenizer is never changed. read_controls: control tokens typed in message text count as such
    (`split_special_tokens: false`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, read_controls: bool = False) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"tokenizer: {type(tokenizer).__name__} has no Rust tokenizer behind it, which rendering needs to keep "
                "message text apart from control tokens; convert it to a tokenizer.json with transformers first"
            )
        self._backend, self.rule = _private_copy(backend)
        added = tokenizer.added_tokens_decoder
        self._names: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        self._ids = {name: token_id for token_id, name in self._names.items()}
        self.eats_left = frozenset(token_id for token_id, token in added.items() if token.lstrip)
        self.eats_right = frozenset(token_id for token_id, token in added.items() if token.rstrip)
        self._markup = _any_of(self._names.values())
        self._controls = _any_of(token.content for token in added.values() if token.special)
        self._inline = self._inline_pattern(added, read_controls)
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._constants: dict[tuple[str, Place], tuple[int, ...]] = {}
        self._frames: dict[tuple[str, Place, float], tuple[list[int], Piece | None]] = {}
        self._spellings: dict[tuple[int, ...], str] = {}
        self._pieces: dict[tuple[tuple[int, ...], float, bool], Piece] = {}
        self._splits: dict[str, tuple[str | int, ...]] = {}

    def _inline_pattern(self, added: Mapping[int, AddedToken], read_controls: bool) -> re.Pattern[str] | None:
        """Tokens looked up inside message text; None where the Rust tokenizer does it by itself."""
        if read_controls:
            return self._markup
        if "control" in self.rule.places:
            return _any_of(token.content for token in added.values() if not token.special)
        return None

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same text would become other ids."""
        flags = (sorted(self.rule.places), self.rule.mark, self._inline is not None, self._bos, self._eos)
        return hashlib.sha256((self._backend.to_str() + repr(flags)).encode()).hexdigest()

    def special_id(self, name: Literal["bos", "eos"]) -> int | None:
        """Id of the tokenizer's own beginning or end token."""
        return self._bos if name == "bos" else self._eos

    def token_id(self, text: str, needed_by: str) -> int:
        """Id of the token written `text`. Raises ConfigError when the vocabulary lacks it."""
        found = self._ids.get(text, self._vocabulary.get(text))
        if found is None:
            raise ConfigError(
                f"template: {needed_by} needs the token {text!r}, which the tokenizer's vocabulary does not hold; "
                "choose the template this model was trained with, or add the token with add_special_tokens"
            )
        return found

    def find_token(self, text: str) -> int | None:
        """Id of the added token written `text`, or None."""
        return self._ids.get(text)

    def is_control(self, token_id: int) -> bool:
        """True for added tokens, which no text runs into."""
        return token_id in self._names

    def token_text(self, token_id: int) -> str:
        """How a token is written."""
        return self._names.get(token_id) or self._backend.id_to_token(token_id) or ""

    def split(self, text: str) -> tuple[str | int, ...]:
        """Cut markup into text and control-token ids, in order; remembered."""
        found = self._splits.get(text)
        if found is None:
            found = self._cut(text, self._markup)
            if len(self._splits) < _MAX_REMEMBERED:
                self._splits[text] = found
        return found

    def split_controls(self, text: str) -> tuple[str | int, ...]:
        """As `split`, for text that is not worth remembering, and for special tokens alone."""
        return self._cut(text, self._controls)

    def holds_control(self, text: str) -> bool:
        """True when a special token is spelled in `text`."""
        return self._controls is not None and self._controls.search(text) is not None

    def is_plain(self, text: str) -> bool:
        """True when no token inside message text has to be looked up here."""
        return self._inline is None or self._inline.search(text) is None

    def split_data(self, text: str) -> Sequence[str | int]:
        """Cut message text where tokens inside it must be looked up here; usually the text itself."""
        if self.is_plain(text):
            return (text,) if text else ()
        return self._cut(text, self._inline)

    def _cut(self, text: str, pattern: re.Pattern[str] | None) -> tuple[str | int, ...]:
        if pattern is None:
            return (text,) if text else ()
        parts = (self._ids.get(part, part) if index % 2 else part for index, part in enumerate(pattern.split(text)))
        return tuple(part for part in parts if part != "")

    def constant(self, text: str, place: Place) -> tuple[int, ...]:
        """Ids of template text; remembered, so it is encoded once."""
        found = self._constants.get((text, place))
        if found is None:
            found = self._constants[text, place] = tuple(self.encode([text], [place])[0])
            self.remember_spelling(found, text)
        return found

    def frame(self, text: str, place: Place, weight: float) -> tuple[list[int], Piece | None]:
        """Ids of template text beside a message, and its piece; remembered, for they repeat in every message."""
        found = self._frames.get((text, place, weight))
        if found is None:
            ids = self.constant(text, place)
            found = self._frames[text, place, weight] = (list(ids), self.piece(ids, weight, True) if ids else None)
        return found

    def piece(self, ids: tuple[int, ...], weight: float, control: bool) -> Piece:
        """A piece of template tokens; the same one each time, since they repeat in every message."""
        key = (ids, weight, control)
        found = self._pieces.get(key)
        if found is None:
            found = Piece(ids, weight, control)
            if len(self._pieces) < _MAX_REMEMBERED:
                self._pieces[key] = found
        return found

    def enclosed(self, text: str, before: int | None, after: int | None) -> tuple[int, ...]:
        """Ids of template text between two control tokens, which may swallow blanks of it."""
        text = text.lstrip() if before in self.eats_right else text
        text = text.rstrip() if after in self.eats_left else text
        return self.constant(text, "control") if text else ()

    def remember_spelling(self, ids: tuple[int, ...], text: str) -> None:
        """Note the text behind a run of template tokens."""
        self._spellings.setdefault(ids, text)

    def spell(self, ids: tuple[int, ...]) -> str:
        """The text of control tokens and of runs noted before."""
        found = self._spellings.get(ids)
        return "".join(map(self.token_text, ids)) if found is None else found

    def encode(self, texts: Sequence[str], places: Sequence[Place]) -> list[list[int]]:
        """Ids of each segment, in one call to the Rust tokenizer."""
        marked = list(map(self.rule.apply, texts, places)) if self.rule.places else list(texts)
        return [item.ids for item in self._backend.encode_batch_fast(marked, add_special_tokens=False)]

    def encode_with_ends(self, texts: Sequence[str], places: Sequence[Place]) -> list[list[tuple[int, int, int]]]:
        """As `encode`, each token as (id, start, end) in characters of its segment."""
        marked = list(map(self.rule.apply, texts, places))
        encoded = self._backend.encode_batch(marked, add_special_tokens=False)
        rows = []
        for text, mark, item in zip(texts, marked, encoded, strict=True):
            shift = len(mark) - len(text)
            spans = ((max(start - shift, 0), max(end - shift, 0)) for start, end in item.offsets)
            rows.append([(token, start, end) for token, (start, end) in zip(item.ids, spans, strict=True)])
        return rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the longest of the names at each place, or None when there are none."""
    ordered = sorted({name for name in names if name}, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def _private_copy(backend: Tokenizer) -> tuple[Tokenizer, PrefixRule]:
    """A copy that reads control tokens as text and puts no blanks in front; the rule says where blanks belong."""
    spec, rule = (
        {"pre_tokenizer": _state(backend.pre_tokenizer), "normalizer": _state(backend.normalizer)},
        PrefixRule(),
    )
    for take in (_take_prepend, _take_metaspace, _take_prefix_space):
        rule = rule if rule.places else take(spec)
    if rule.places:
        own = Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), **spec}, ensure_ascii=False))
    else:
        own = copy.deepcopy(backend)
    own.no_truncation()
    own.no_padding()
    own.post_processor = None
    own.encode_special_tokens = True
    return own, rule


def _state(component: Any) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer as the tokenizer file writes it."""
    return None if component is None else json.loads(component.__getstate__())


def _steps(state: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if state is None:
        return []
    return list(state[key]) if state["type"] == "Sequence" else [state]


def _take_prepend(spec: dict[str, Any]) -> PrefixRule:
    steps = _steps(spec["normalizer"], "normalizers")
    found = next((step for step in steps if step["type"] == "Prepend"), None)
    if found is None:
        return PrefixRule()
    spec["normalizer"] = {"type": "Sequence", "normalizers": [step for step in steps if step is not found]}
    return PrefixRule(_EACH, str(found["prepend"]), always=True)


def _take_metaspace(spec: dict[str, Any]) -> PrefixRule:
    first: dict[str, Any] = next(iter(_steps(spec["pre_tokenizer"], "pretokenizers")), {"type": ""})
    if first["type"] != "Metaspace" or first["prepend_scheme"] == "never":
        return PrefixRule()
    places = _EACH if first["prepend_scheme"] == "always" else frozenset[Place]({"start"})
    first["prepend_scheme"] = "never"
    return PrefixRule(places, str(first["replacement"]))


def _take_prefix_space(spec: dict[str, Any]) -> PrefixRule:
    first: dict[str, Any] = next(iter(_steps(spec["pre_tokenizer"], "pretokenizers")), {"type": ""})
    if first["type"] != "ByteLevel" or not first["add_prefix_space"]:
        return PrefixRule()
    first["add_prefix_space"] = False
    return PrefixRule(_EACH, " ")
