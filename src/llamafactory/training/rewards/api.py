"""Scores from a server: POST {"model": "model", "messages": [text, ...]}, answered by {"scores": [number, ...]}.

Each text is a whole conversation as the policy saw and wrote it, control tokens included. Proxies and redirects are
not followed. Every failure ends in one sentence.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError, LlamaFactoryError
from llamafactory.logs import get_logger
from llamafactory.training.reference import Autocast
from llamafactory.training.rewards import Reward

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = get_logger(__name__)

MAX_TEXTS = 64
ATTEMPTS = 3
PAUSE_SECONDS = 0.2
BYTES_PER_SCORE, SPARE_BYTES = 256, 2**16


class RewardServerError(LlamaFactoryError):
    """The reward server cannot be reached, or its answer cannot be used."""


class _PassingError(Exception):
    """A failure that may be over at the next attempt."""


def check(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError unless reward_model is a URL of http or https."""
    url = str(config.ppo.reward_model)
    if not _is_url(url):
        raise ConfigError(
            f"{config.place('reward_model')}: reward_model: {url!r} is not a URL, and reward_model_type: api needs "
            "one such as http://127.0.0.1:8000/score; correct it, or set reward_model_type: full"
        )


def build(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, autocast: Autocast
) -> Reward:
    """A client of the server at `reward_model`; nothing is sent yet."""
    return ServerReward(str(config.ppo.reward_model), tokenizer, config.ppo.reward_model_timeout_seconds)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


@dataclass(frozen=True)
class ServerReward:
    """Scores by a server. timeout_seconds: longest silence of the server, and longest time for its whole answer."""

    url: str
    tokenizer: PreTrainedTokenizerBase
    timeout_seconds: float

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        texts = [
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for ids in sequences
        ]
        parts = [texts[start : start + MAX_TEXTS] for start in range(0, len(texts), MAX_TEXTS)]
        return [score for part in parts for score in self._scores(part)]

    def _scores(self, texts: list[str]) -> list[float]:
        body = json.dumps({"model": "model", "messages": texts}).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._read(self._post(body, len(texts)), len(texts))
            except _PassingError as error:
                if attempt == ATTEMPTS:
                    raise self._failure(f"{error}, {ATTEMPTS} times in a row") from error
                logger.warning("reward_model: %s %s; trying again", self.url, error)
                time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes, num_texts: int) -> bytes:
        """The body of the answer. Raises _PassingError for failures that may pass, RewardServerError for others."""
        send = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect()).open
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
            with send(request, timeout=self.timeout_seconds) as answer:
                return self._body(answer, SPARE_BYTES + BYTES_PER_SCORE * num_texts)
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code == 429:
                raise _PassingError(f"answered with status {error.code}") from error
            raise self._failure(f"answered with status {error.code}") from error
        except TimeoutError as error:
            raise _PassingError(f"did not answer within {self.timeout_seconds:g} seconds") from error
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _PassingError(f"did not answer within {self.timeout_seconds:g} seconds") from error
            raise _PassingError(f"could not be reached ({_reason(error)})") from error
        except ValueError as error:  # a URL that cannot be parsed
            raise self._failure(f"is no URL that can be asked ({error})") from error

    def _body(self, answer: HTTPResponse, limit: int) -> bytes:
        deadline, parts, size = time.monotonic() + self.timeout_seconds, [], 0
        while part := answer.read1(2**14):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise self._failure(f"answered with more than {limit} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return b"".join(parts)

    def _read(self, body: bytes, num_texts: int) -> list[float]:
        try:
            content = json.loads(body)
        except ValueError as error:
            raise self._failure(f"answered with {_shown(body)}, which is not JSON") from error
        scores = content.get("scores") if isinstance(content, dict) else None
        if not isinstance(scores, list):
            raise self._failure(f"answered with {_shown(body)}, which has no list of scores")
        if len(scores) != num_texts:
            raise self._failure(f"answered with {len(scores)} scores for {num_texts} texts")
        if bad := [score for score in scores if not _is_score(score)]:
            raise self._failure(f"gave the score {bad[0]!r}, which is not a finite number")
        return [float(score) for score in scores]

    def _failure(self, what: str) -> RewardServerError:
        return RewardServerError(
            f"reward_model: the server {self.url} {what}; it must answer POST "
            '{"messages": [text, ...]} with {"scores": [number, ...]}; look at its log, correct reward_model, or raise '
            "reward_model_timeout_seconds"
        )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(body: bytes) -> str:
    text = body.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error or type(error).__name__)
