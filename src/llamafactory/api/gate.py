"""How many answers the server holds at once, running and waiting; one too many is told when to come again.

Knows counts and times, no engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llamafactory.api.errors import ApiError

_MEMORY = 0.8  # weight of the past in the mean duration
_MAX_RETRY_SECONDS = 60


class Place:
    """Room for the answers of one request. started: how many of them have given their first token."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.started = 0


class Gate:
    """Lets answers in while there is room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: set[Place] = set()
        self._mean_seconds = 1.0

    @property
    def running(self) -> int:
        """Answers that have given a token."""
        return sum(place.started for place in self._places)

    @property
    def waiting(self) -> int:
        """Answers that have not."""
        return sum(place.size - place.started for place in self._places)

    @contextmanager
    def enter(self, size: int) -> Iterator[Place]:
        """Hold room for so many answers. Raises ApiError 429 with the seconds to wait when there is none now.

        More than there ever is room for is a mistake, 400: a client that tries again would do so for ever.
        """
        if size > self._most:
            raise ApiError(
                400,
                f"n: this request asks for {size} answers (n times its prompts) and the server holds at most "
                f"{self._most}; ask for fewer at once, or let its operator raise API_MAX_QUEUE",
                param="n",
            )
        taken = sum(place.size for place in self._places)
        if taken + size > self._most:
            raise ApiError(
                429,
                f"The server holds {taken} of at most {self._most} answers and has no room for {size} more; try again "
                f"in {self._retry_seconds()} seconds",
                code="queue_full",
                retry_seconds=self._retry_seconds(),
            )
        place, start = Place(size), time.monotonic()
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)
            seconds = time.monotonic() - start
            self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * seconds

    def _retry_seconds(self) -> int:
        return min(max(math.ceil(self._mean_seconds), 1), _MAX_RETRY_SECONDS)
