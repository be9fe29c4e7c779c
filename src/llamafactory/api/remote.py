"""Fetch a medium from a public http(s) address, and from nowhere else.

A host name is looked up once, every address found must be public, and the connection goes to such an address: what the
name means a moment later does not matter. Redirects are followed by hand, each checked as the first. No proxies.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

from llamafactory.api.settings import Limits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 1024


class Refused(Exception):
    """A medium that is not fetched; the message says why and holds nothing of what was found."""


def is_public(address: Address) -> bool:
    """True for an address of the open internet, also where it is written inside an IPv6 address."""
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    local = address.is_multicast or address.is_reserved or address.is_unspecified
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not local and not site_local


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64, 6to4 and Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a name, as the system finds them."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Fetcher:
    """Fetches within limits. resolve, may_connect, ports: replaced where tests serve from this machine."""

    limits: Limits
    resolve: Callable[[str, int], Sequence[str]] = resolve
    may_connect: Callable[[Address], bool] = is_public
    ports: frozenset[int] | None = frozenset({80, 443})

    def fetch(self, url: str) -> bytes:
        """The bytes behind an address. Raises Refused when it may not be fetched or does not answer in time."""
        deadline = time.monotonic() + self.limits.media_seconds
        for _ in range(self.limits.media_redirects + 1):
            answer = self._get(self._check(url), deadline)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise Refused(f"it redirects more than {self.limits.media_redirects} times")

    def _check(self, url: str) -> SplitResult:
        """Take an address apart, once for everybody."""
        if not url.isascii() or any(letter <= " " or letter in '\\"<>^`{|}\x7f' for letter in url):
            raise Refused("its address holds characters that addresses cannot hold")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Refused("its address cannot be read") from None
        if parts.scheme not in ("http", "https"):
            raise Refused("only http and https addresses are fetched")
        if parts.username is not None or parts.password is not None or not parts.hostname or "%" in parts.netloc:
            raise Refused("its address must name a host and no user")
        if self.ports is not None and (port or _port(parts)) not in self.ports:
            raise Refused("only the ports 80 and 443 are used")
        return parts

    def _get(self, parts: SplitResult, deadline: float) -> bytes | str:
        """The body, or where a redirect leads."""
        host, port = parts.hostname or "", parts.port or _port(parts)
        sock = self._open(self._addresses(host, port), port, deadline)
        # A server that sends byte by byte keeps every single read short: only a clock of its own ends it in time.
        # It holds the connection by a name of its own, since TLS takes the first one away.
        late, wire = threading.Event(), sock.dup()
        clock = threading.Timer(max(deadline - time.monotonic(), 0.01), _hang_up, [wire, late])
        clock.start()
        connection = http.client.HTTPConnection(host, port)
        connection.sock = sock
        try:
            if parts.scheme == "https":
                connection.sock = _encrypt(sock, host)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "*/*", "Accept-Encoding": "identity"})
            answer = self._read(connection.getresponse())
        except (OSError, http.client.HTTPException):
            raise _no_answer() from None
        finally:
            clock.cancel()
            wire.close()
            connection.close()
        if late.is_set():  # what came until then looks like a whole answer
            raise _no_answer()
        return answer

    def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = [ipaddress.ip_address(text) for text in self.resolve(host, port)]
        except (OSError, ValueError, UnicodeError):
            raise Refused("its host is not known") from None
        if not found or not all(map(self.may_connect, found)):
            raise Refused("its host is not a public one")
        return found

    def _open(self, addresses: Sequence[Address], port: int, deadline: float) -> socket.socket:
        for address in addresses:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            try:
                return socket.create_connection((str(address), port), timeout=seconds)
            except OSError:
                continue
        raise Refused("its host cannot be reached")

    def _read(self, response: http.client.HTTPResponse) -> bytes | str:
        if response.status in _REDIRECTS:
            return response.headers.get("Location") or _no_target()
        if response.status != 200:
            raise Refused("its server does not give it away")
        most, body = self.limits.media_bytes, bytearray()
        if (response.length or 0) > most:
            raise Refused(f"it is larger than {most} bytes")
        while chunk := response.read(_CHUNK_BYTES):
            body += chunk
            if len(body) > most:
                raise Refused(f"it is larger than {most} bytes")
        if response.length:
            raise _no_answer()
        return bytes(body)


def _port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80


def _no_target() -> NoReturn:
    raise Refused("it redirects to nowhere")


def _encrypt(sock: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except OSError:
        raise Refused("its certificate does not prove that it is the host it names") from None


def _no_answer() -> Refused:
    return Refused("it does not answer as a server should within the time allowed")


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
