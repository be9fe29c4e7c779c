"""Turn a stream of token ids into a stream of text that can be shown at once.

A character may be spread over several tokens and a stop text over several pieces; both are held back until they are
complete. Knows a tokenizer's `decode`; no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamafactory.inference.engine import TokenLogprob

REPLACEMENT = "\ufffd"
_MAX_HELD = 3  # an unfinished UTF-8 character has at most three bytes: three tokens, or three U+FFFD
_MAX_WINDOW = 64


class Detokenizer:
    """Decode token by token; the pieces joined are the text of all tokens.

    decode: maps a list of token ids to text, without clean-up. Some tokenizers drop or add a space at the start of a
    text, and some turn a whole run of bytes into U+FFFD until the run is complete, so every decoding begins a few
    tokens before the new one, and an unfinished end is waited for.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._clean = 0  # tokens of the window whose text ended with a whole character
        self._given = 0  # characters of the window's text already returned

    def push(self, token: int) -> str:
        """Add a token; returns the text that became certain, often empty."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        if whole != text and len(self._window) - self._clean <= _MAX_HELD:
            return ""
        end = max(len(whole), len(text) - _MAX_HELD)
        piece = text[self._given : end]
        self._given = max(self._given, end)
        if (piece and end == len(text)) or len(self._window) > _MAX_WINDOW:
            self._slide()
        return piece

    def finish(self) -> str:
        """The text still held back; bytes that never became a character appear as U+FFFD."""
        text = self._decode(self._window)
        piece, self._given = text[self._given :], len(text)
        return piece

    def _slide(self) -> None:
        held = len(self._decode(self._window)) - self._given
        self._window = self._window[self._clean :]
        self._clean = len(self._window)
        self._given = len(self._decode(self._window)) - held


class StopFilter:
    """Hold back text that may be the beginning of a stop text, and end at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns what may be shown. After a stop text `stopped` is true and nothing more is returned."""
        if self.stopped:
            return ""
        self._held += text
        found = [position for position in map(self._held.find, self._stops) if position >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - self._overlap())

    def finish(self) -> str:
        """The text still held back; it did not become a stop text."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class AnswerStream:
    """From token ids to shown text: drops the stop tokens, decodes, and watches for stop texts."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop_ids: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._filter = StopFilter(stops)
        self._stop_ids = frozenset(stop_ids)
        self.num_tokens = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text to show. `stopped` becomes true at a stop token or a stop text."""
        if self.stopped:
            return ""
        self.num_tokens += 1
        if token in self._stop_ids:
            self.stopped = True
            return self._flush()
        text = self._filter.push(self._detokenizer.push(token))
        self.stopped = self._filter.stopped
        return text

    def finish(self) -> str:
        """The text still held back when the tokens end without a stop."""
        return "" if self.stopped else self._flush()

    def _flush(self) -> str:
        return self._filter.push(self._detokenizer.finish()) + self._filter.finish()


class LogprobQueue:
    """Hands out log-probabilities of tokens together with the text they make; stop tokens make none."""

    def __init__(self, stop_ids: Sequence[int]) -> None:
        self._stop_ids = frozenset(stop_ids)
        self._waiting: list[TokenLogprob] = []

    def push(self, token: TokenLogprob) -> None:
        """Add the next token of the answer."""
        if token.token_id not in self._stop_ids:
            self._waiting.append(token)

    def take(self, text: str) -> tuple[TokenLogprob, ...]:
        """The waiting tokens that `text`, the next piece of the answer, consists of."""
        covered = count = 0
        while covered < len(text) and count < len(self._waiting):
            covered += len(self._waiting[count].text)
            count += 1
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple(found)

    def finish(self, text: str, *, cut: bool) -> tuple[TokenLogprob, ...]:
        """The tokens of the last piece; all that wait, unless a stop cut the rest off."""
        return self.take(text) if cut else self.take(text) + tuple(self._waiting)
