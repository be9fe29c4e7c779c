"""Making a tokenizer fit a template: its end token, stop words as control tokens, a padding token.

Changes the tokenizer it is given and says what it changed; knows no model (see `resize_vocab` there).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from llamafactory.rendering.control_tokens import turn_tokens
from llamafactory.rendering.template import Template

FALLBACK_EOS = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TokenizerChanges:
    """What was changed; None and empty where nothing was. added: tokens that are new to the vocabulary.

    spelled: no change, but control tokens of the template that the tokenizer does not hold and reads as plain text.
    """

    eos: str | None = None
    pad: str | None = None
    control: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    spelled: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.eos or self.pad or self.control or self.added)


def fix_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Template) -> TokenizerChanges:
    """Give `tokenizer` the end and stop tokens of `template`, in place; doing it twice changes nothing more.

    The first stop word becomes the end token where the template says so, the others become control tokens. A tokenizer
    without end token gets one, one without padding token pads with its end token (padding is masked by position).
    """
    known = set(tokenizer.get_vocab())
    eos = template.stop_words[0] if template.replace_eos else None
    if eos is None and tokenizer.eos_token is None:
        eos = FALLBACK_EOS
    if eos is not None and tokenizer.eos_token == eos:
        eos = None
    if eos is not None:
        tokenizer.add_special_tokens({"eos_token": AddedToken(eos, special=True, normalized=False)})
    control = _stop_words(tokenizer, template)
    if control:
        tokenizer.add_tokens(
            [AddedToken(word, special=True, normalized=False) for word in control], special_tokens=True
        )
    pad = None
    if tokenizer.pad_token is None:
        pad = tokenizer.eos_token
        tokenizer.pad_token = pad
    written = (*((eos,) if eos else ()), *control)
    added = tuple(word for word in written if word not in known)
    spelled = tuple(word for word in turn_tokens(template) if word not in known and word not in written)
    return TokenizerChanges(eos, pad, control, added, spelled)


def _stop_words(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """Stop words that are not control tokens yet."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(word for word in template.stop_words if word not in special)
