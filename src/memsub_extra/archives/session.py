"""Requests to unknown addresses, with pauses between requests to a host, and with limits that protect this machine.

    session = PoliteSession()
    page = session.get("https://example.org/x.jpg")         # page.content, page.url, page.text

Anybody may have written the list of addresses, and anybody may own the hosts now. So requests use only http and https,
no hosts of private networks and no credentials of ~/.netrc, and read at most `MOST_BYTES` (decompressed) in at most
`SECONDS`. Requests to one host have pauses between them; a busy server gets the time that it asks for.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_encoding_from_headers
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

PAUSE = 1.0
"""Seconds between two requests to one host."""
SECONDS = 120.0
"""Limit for one address in seconds, including redirects and the pauses that servers ask for."""
MOST_BYTES = 50_000_000
"""Largest size of a decompressed answer in bytes."""
PRIVATE = False
"""Whether requests to this machine and to private networks are allowed."""
_REDIRECTS, _ATTEMPTS = 8, 4
_BUSY = (429, 502, 503)


@dataclass(frozen=True)
class Page:
    """A whole answer: its bytes, the address that it came from in the end, and its encoding."""

    content: bytes
    url: str
    encoding: str | None = None

    @property
    def text(self) -> str:
        return self.content.decode(self.encoding or "utf-8", "replace")


class Refused(requests.RequestException):
    """The address is not allowed, the server is busy, or its answer is too large or too slow (see the message)."""


class PoliteSession:
    """Makes requests with pauses between requests to one host; threads may share it.

    Args:
        timeout: seconds to wait for data from the server.
        pause: seconds between two requests to one host; default `PAUSE`.
        private: allow hosts of this machine and of private networks; default `PRIVATE`.
        seconds: limit for one address; default `SECONDS`.
    """

    def __init__(
        self,
        timeout: float = 20,
        pause: float | None = None,
        private: bool | None = None,
        seconds: float | None = None,
    ):
        self.timeout, self.pause = timeout, PAUSE if pause is None else pause
        self.private, self.seconds = PRIVATE if private is None else private, SECONDS if seconds is None else seconds
        self._session = requests.Session()
        self._session.trust_env = False  # no credentials of ~/.netrc for hosts of a list
        self._session.headers["Connection"] = "close"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self.private))
        self._hosts: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._next: dict[str, float] = {}

    def get(self, url: str, *, headers: dict[str, str] | None = None, limit: int = MOST_BYTES) -> Page:
        """The complete answer, after redirects.

        Args:
            limit: largest size of the decompressed answer in bytes.

        Raises:
            requests.RequestException: the request failed, or was refused (`Refused`).
        """
        deadline = time.monotonic() + self.seconds
        for _ in range(_REDIRECTS):
            parts = _parts(url)
            with self._turn(parts.netloc, deadline):
                try:
                    answer = self._asked(url, headers, limit, deadline)
                except _Private as error:
                    raise Refused(str(error)) from None
            if isinstance(answer, Page):
                return answer
            url = urljoin(url, answer)
        raise Refused(f"{url[:200]} redirects without end.")

    def _asked(self, url: str, headers: dict[str, str] | None, limit: int, deadline: float) -> Page | str:
        """A page, or the address to which the server redirects; waits while it is busy."""
        for attempt in range(_ATTEMPTS):
            with _watched(deadline):
                answer = self._session.get(
                    url,
                    headers=headers,
                    timeout=self.timeout,
                    allow_redirects=False,
                    stream=True,
                    proxies=_proxies(url, self.private),
                )
                with answer:
                    if "location" in answer.headers and answer.is_redirect:
                        return answer.headers["location"]
                    if answer.status_code not in _BUSY:
                        answer.raise_for_status()
                        content = _content(answer, limit, deadline)
                        return Page(content, answer.url, get_encoding_from_headers(answer.headers))
            wait = _seconds(answer.headers.get("Retry-After"), 2.0**attempt)
            if attempt + 1 == _ATTEMPTS or time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        raise Refused(f"{url[:200]} is busy ({answer.status_code}).")

    @contextmanager
    def _turn(self, host: str, deadline: float) -> Iterator[None]:
        with self._hosts[host]:
            time.sleep(max(0.0, min(self._next.get(host, 0.0), deadline) - time.monotonic()))
            try:
                yield
            finally:
                self._next[host] = time.monotonic() + self.pause


def _parts(url: str) -> Any:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Refused(f"{url[:200]!r} is no address: {error}.") from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise Refused(f"{url[:200]!r} is no address of the web: http:// or https:// is expected.")
    return parts


def _seconds(asked: str | None, otherwise: float) -> float:
    """The seconds of a Retry-After header; `otherwise` if it is missing or a date."""
    return float(asked) if asked and asked.strip().isdecimal() else otherwise


def _content(answer: requests.Response, limit: int, deadline: float) -> bytes:
    promised = answer.headers.get("Content-Length", "")
    too_large = Refused(f"{answer.url[:200]} is larger than {limit:,} bytes.")
    if promised.isdecimal() and int(promised) > limit:
        raise too_large
    parts, size = [], 0
    for part in answer.iter_content(2**16):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_large
    if time.monotonic() > deadline:  # a cut connection looks like the end of the answer
        raise Refused(f"{answer.url[:200]} takes too long.")
    return b"".join(parts)


# --- connections -----------------------------------------------------------------------------------------------

_thread = threading.local()
"""`sockets`: the connections of the request that this thread makes."""


@contextmanager
def _watched(deadline: float) -> Iterator[None]:
    """Cuts the thread's connections at the deadline: a server that sends a byte a second keeps within every timeout."""
    sockets: list[socket.socket] = []
    _thread.sockets = sockets

    def cut() -> None:
        for connected in sockets:
            with suppress(OSError):  # closed meanwhile
                connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _thread.sockets = []


class _Watched:
    """A connection that can be cut. Unless `private` is set, it checks the server address before it sends data."""

    private = False

    def _new_conn(self) -> socket.socket:
        if not self.private:
            check_host(self._dns_host)  # type: ignore[attr-defined]
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            if not self.private:  # again: the name may resolve to another address by now
                check_public(connected.getpeername()[0])
        except BaseException:
            connected.close()
            raise
        _thread.sockets.append(connected)
        return connected

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _thread.sockets.append(self.sock)  # type: ignore[attr-defined]  # with TLS it is another socket


class _Private(ValueError):
    """An address of this machine or of a private network."""


def check_public(address: str) -> None:
    """Raises ValueError for an IP address that is not public, such as those of this machine or of a private network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if not ip.is_global or ip.is_multicast:
        raise _Private(f"{address} is an address of this machine or of a private network, which are not asked.")


def check_host(host: str) -> None:
    """`check_public` of all addresses to which this machine resolves a name; a name that it cannot resolve passes."""
    with suppress(OSError, UnicodeError):
        for address in {str(info[4][0]) for info in socket.getaddrinfo(host, None)}:
            check_public(address)


class _Adapter(HTTPAdapter):
    """An adapter whose connections are `_Watched`."""

    def __init__(self, private: bool):
        self._private = private
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._private)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _pools(private=True)  # a proxy may be in a private network
        return manager


def _pools(private: bool) -> dict[str, type]:
    kinds = {"http": (HTTPConnectionPool, HTTPConnection), "https": (HTTPSConnectionPool, HTTPSConnection)}
    return {
        scheme: type("_Pool", (pool,), {"ConnectionCls": type("_Connection", (_Watched, kind), {"private": private})})
        for scheme, (pool, kind) in kinds.items()
    }


def _proxies(url: str, private: bool) -> dict[str, str]:
    """Proxies of the environment. A proxy resolves names itself; only names that this machine knows are checked."""
    host = urlsplit(url).hostname or ""
    proxies = {} if proxy_bypass(host) else {k: v for k, v in getproxies().items() if k in ("http", "https", "all")}
    if proxies and not private:
        check_host(host)
    return proxies
