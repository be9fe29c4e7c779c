"""Images, videos and audio of a request: data URLs, files below one folder, public addresses; else an error.

A file that is not there and one that may not be read get the same answer. Knows bytes, not what is on a picture.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import os
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from llamafactory.api.errors import ApiError
from llamafactory.api.remote import Fetcher, Refused
from llamafactory.api.schema import AudioPart, ImagePart, InputAudioPart, VideoPart
from llamafactory.api.settings import Settings

Kind = Literal["image", "video", "audio"]
MediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart
PLACEHOLDERS: Mapping[Kind, str] = {"image": "<image>", "video": "<video>", "audio": "<audio>"}

_DATA_URL = re.compile(
    r"data:(?P<kind>[a-z]+)/[a-zA-Z0-9.+\-]{1,64}(?:;[a-z]+=[a-zA-Z0-9.\-]{1,64})?;base64,", re.ASCII
)
_IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")


def kind_of(part: MediaPart) -> Kind:
    """What a part of a message shows."""
    kinds: Mapping[str, Kind] = {"image_url": "image", "video_url": "video"}
    return kinds.get(part.type, "audio")


class MediaLoader:
    """Reads media as the server's settings allow."""

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._fetcher = fetcher or Fetcher(settings.limits)

    async def load(self, part: MediaPart, place: str) -> bytes:
        """The bytes of a medium. place: where it stands in the request. Raises ApiError with the reason."""
        try:
            content = await asyncio.to_thread(self._read, part)
            if kind_of(part) == "image":
                await asyncio.to_thread(self._check_image, content)
            return content
        except Refused as error:
            raise ApiError(
                400, f"{place}: the {kind_of(part)} cannot be used: {error}", param=place, code="invalid_media"
            ) from None

    def _read(self, part: MediaPart) -> bytes:
        if isinstance(part, InputAudioPart):
            return self._decode(part.input_audio.data)
        url = _url(part)
        if url.startswith("data:"):
            return self._from_data_url(url, kind_of(part))
        if re.match(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.\-]*:", url):
            return self._from_address(url)
        return self._from_file(url)

    def _from_data_url(self, url: str, kind: Kind) -> bytes:
        found = _DATA_URL.match(url)
        if found is None or found["kind"] != kind:
            raise Refused(f"its data URL must begin like data:{kind}/...;base64,")
        return self._decode(url[found.end() :])

    def _decode(self, text: str) -> bytes:
        if len(text) * 3 // 4 > self._limits.media_bytes + 3:
            raise self._too_large()
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("its base64 cannot be read") from None
        return self._sized(content)

    def _from_address(self, url: str) -> bytes:
        if not self._settings.remote_media:
            raise Refused(
                "this server fetches nothing; send it as a data URL, or let its operator set ALLOW_REMOTE_MEDIA"
            )
        return self._fetcher.fetch(url)

    def _from_file(self, url: str) -> bytes:
        root = self._settings.media_root
        if root is None:
            raise Refused("this server reads no files; send it as a data URL, or let its operator set SAFE_MEDIA_PATH")
        name = unquote(urlsplit(url).path) if url.startswith("file:") else url
        try:
            content = read_below(root, name, self._limits.media_bytes + 1)
        except (OSError, ValueError):
            raise Refused("there is no such file in the media folder") from None
        return self._sized(content)

    def _sized(self, content: bytes) -> bytes:
        if len(content) > self._limits.media_bytes:
            raise self._too_large()
        if not content:
            raise Refused("it is empty")
        return content

    def _too_large(self) -> Refused:
        return Refused(f"it is larger than {self._limits.media_bytes} bytes")

    def _check_image(self, content: bytes) -> None:
        """Read the head of a picture: a few bytes may stand for more pixels than fit into memory."""
        from PIL import Image, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
                    pixels = image.width * image.height
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            pixels = self._limits.media_pixels + 1
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            raise Refused(f"it is none of {', '.join(_IMAGE_FORMATS)}") from None
        if pixels > self._limits.media_pixels:
            raise Refused(f"it has more than {self._limits.media_pixels} pixels")


def read_below(root: Path, name: str, most: int) -> bytes:
    """At most so many bytes of a plain file below `root`, links resolved first.

    Raises OSError or ValueError for anything else, without a word on what is there.
    """
    path = (root / name).resolve(strict=True)
    if not path.is_relative_to(root):
        raise ValueError("outside")
    # Neither a link put there meanwhile nor a pipe nobody writes to is opened.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not path.is_file():
        raise ValueError("no plain file")
    handle = os.open(path, flags)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("no plain file")
        return file.read(most)


def _url(part: ImagePart | VideoPart | AudioPart) -> str:
    if isinstance(part, ImagePart):
        return part.image_url.url
    return part.video_url.url if isinstance(part, VideoPart) else part.audio_url.url
