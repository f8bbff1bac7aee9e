"""Pictures by https address, fetched without becoming a way into the network that the server stands in.

Every address that a name resolves to must be public, and the connection goes to the address that was checked, so that a
second answer of the name server changes nothing. Redirects are followed by the same rules. Proxies of the environment
are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from sensorium.errors import UserError

REDIRECTS = 3
PORT = 443
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 behind a translator (RFC 6052)."""


def resolve(host: str) -> list[str]:
    """The addresses of a name."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)))


def connect(address: str, seconds: float) -> socket.socket:
    return socket.create_connection((address, PORT), timeout=seconds)


def secured(connection: socket.socket, host: str) -> socket.socket:
    return ssl.create_default_context().wrap_socket(connection, server_hostname=host)


def public(address: str) -> bool:
    """Whether an address is one of the open internet: no loopback, private, link-local, shared or multicast one, not
    written as IPv6 either."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


@dataclass(frozen=True)
class Fetcher:
    """Fetches one picture at a time, within limits.

    most, seconds  bytes and seconds of one picture, redirects included
    resolve, connect, secured  how a name is looked up, an address is called and TLS is begun
    """

    most: int
    seconds: float
    resolve: Callable[[str], list[str]] = resolve
    connect: Callable[[str, float], socket.socket] = connect
    secured: Callable[[socket.socket, str], socket.socket] = secured

    def fetch(self, url: str) -> bytes:
        """What stands at an https address. Raises UserError that says why not; of other networks it says no more."""
        end = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            found = self._asked(url, end)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError as error:  # half an IPv6 address, say
                raise UserError("it was redirected to what is no valid address") from error
        raise UserError(f"the address was redirected more than {REDIRECTS} times")

    def _asked(self, url: str, end: float) -> bytes | str:
        """The content, or where it is said to be."""
        host, path = _parts(url)
        address = self._checked(host)
        left = end - time.monotonic()
        if left <= 0:
            raise UserError(f"fetching it took longer than {self.seconds:g} s")
        try:
            with self.connect(address, left) as raw, _Alarm(raw, left), self.secured(raw, host) as secure:
                found = self._response(secure, host, path)
            if time.monotonic() >= end:  # what was cut off then may look whole
                raise TimeoutError
            return found
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= end
            why = f"took longer than {self.seconds:g} s" if late else f"failed ({type(error).__name__})"
            raise UserError(f"fetching it {why}") from error

    def _checked(self, host: str) -> str:
        try:
            addresses = self.resolve(host)
            allowed = bool(addresses) and all(map(public, addresses))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one (idna)
            raise UserError("its host cannot be found") from error
        if not allowed:
            raise UserError("its host is not on the public internet")
        return addresses[0]

    def _response(self, secure: socket.socket, host: str, path: str) -> bytes | str:
        connection = http.client.HTTPConnection(host, PORT)
        connection.sock = secure
        headers = {"Host": host, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "sensorium"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return response.headers.get("Location") or ""
        if response.status != 200:
            raise UserError(f"its host answered with status {response.status}")
        content = response.read(self.most + 1)
        if len(content) > self.most:
            raise UserError(f"it is larger than {self.most:,} bytes")
        return content


def _parts(url: str) -> tuple[str, str]:
    """Host, and path with query. Raises UserError for an address that is not plain https."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError("it is no valid address") from error
    if parts.scheme != "https" or not host or port not in (None, PORT) or parts.username is not None:
        raise UserError("only https://host/path is fetched, on the standard port and without a user name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise UserError("its address has characters that are to be percent-encoded")
    return host, path


class _Alarm:
    """Ends a connection at a time, whatever it is waiting for: time-outs of a socket begin anew with every byte."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._own = connection.dup()  # TLS takes the socket away, the connection stays the same
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        try:
            self._own.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed at the same moment

    def __enter__(self) -> _Alarm:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        self._own.close()
