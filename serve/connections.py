"""Limits on connections, which uvicorn lacks: their number, the length and the time of a request's head, and
the time for which a client may leave an answer unread.

uvicorn's protocol is extended: bytes pass through and are counted.
"""

import asyncio
import fcntl
import re
import resource
import sys
import termios
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.observability import log
from serve.problems import Problem

MOST_HEAD_BYTES = 64 * 2**10
_SWEEP_SECONDS = 1.0
# How long the client of a refused connection has to read the answer.
_LINGER_SECONDS = 2.0
# Files that the process needs besides connections: stores, models, libraries.
_OTHER_FILES = 256
_UPGRADE = re.compile(rb"\r\n(upgrade):", re.IGNORECASE)
current: ContextVar["Connection | None"] = ContextVar("connection", default=None)
"""The connection whose request the current task answers; None in process, without a server."""


class Connections:
    """All open connections.

    Args:
        most: How many there may be; beyond, the one that has been without a request for longest is closed.
        head_seconds: How long a connection may be without a request, or take to send the head of one.
        unread_seconds: How long a client may take no byte of an answer.
        sweep: Called every second while connections are open.
    """

    def __init__(
        self, most: int, head_seconds: float, unread_seconds: float, sweep: Callable[[], None]
    ) -> None:
        self._most = most
        self._head_seconds = head_seconds
        self._unread_seconds = unread_seconds
        self._also = sweep
        self._open: dict[Connection, None] = {}  # in the order in which they became idle
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, **uvicorn: Any) -> asyncio.Protocol:
        """The protocol of a new connection; uvicorn calls it as it would its own class."""
        return Connection(self, **uvicorn)

    def add(self, connection: "Connection") -> None:
        """A connection was opened."""
        if len(self._open) >= self._most:
            idle = next((one for one in self._open if not one.requests), None)
            log.warning("%d connections are open: one is closed", len(self._open))
            if idle is None:
                text = "too many connections; try again later"
                connection.refuse(Problem(503, "connections", text, {"Retry-After": "1"}))
            else:
                idle.refuse(None)
        self.became_idle(connection)
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def became_idle(self, connection: "Connection") -> None:
        """A connection has no request under way from now on."""
        self._open.pop(connection, None)
        self._open[connection] = None
        connection.idle_since = asyncio.get_running_loop().time()

    def remove(self, connection: "Connection") -> None:
        """A connection was closed."""
        self._open.pop(connection, None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._open):
            unread = connection.unread()
            if unread != connection.last_unread:
                connection.last_unread, connection.idle_since = unread, now
            idle = now - connection.idle_since
            if unread:
                if idle > self._unread_seconds:
                    connection.refuse(None)
            elif not connection.requests and idle > self._head_seconds:
                text = f"the head of the request took longer than {self._head_seconds:g} s"
                connection.refuse(Problem(408, "head-timeout", text) if connection.head_bytes else None)
        self._also()
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(_SWEEP_SECONDS, self._sweep)


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = connections
        self._refused = False
        self._last_headers: object = None  # of the latest request that the application has heard of
        self.requests = 0  # in progress
        self.head_bytes = 0  # of a request that the application has not heard of
        self.last_unread = 0  # what `unread` returned at the last sweep
        self.idle_since = 0.0  # when the last request ended, or the client last took bytes of an answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """The client has connected."""
        super().connection_made(transport)
        self._limits.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._refused:
            return
        current.set(self)  # the application's task inherits it
        super().data_received(data if self.requests else _without_upgrade(data))
        # Until the parser begins a list of headers, these bytes are the rest of a body that was not needed.
        if self.requests or self.headers is self._last_headers:
            return
        self.head_bytes += len(data)
        if self.head_bytes > MOST_HEAD_BYTES:
            # Once the application's task has run: these bytes may hold a head and a body.
            asyncio.get_running_loop().call_soon(self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._limits.remove(self)
        if not self._refused:
            super().connection_lost(exc)

    def unread(self) -> int:
        """Bytes of answers that wait for the client."""
        waiting = self.transport.get_write_buffer_size()
        if waiting and sys.platform == "linux":
            # The system's own buffer holds megabytes, which a slow client takes first.
            sent = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(sent, sys.byteorder)
        return waiting

    def begin_request(self, headers: object) -> None:
        """The application has heard of a request, with this list of headers."""
        self.requests += 1
        self.head_bytes = 0
        self._last_headers = headers

    def end_request(self) -> None:
        """The application has answered a request."""
        self.requests -= 1
        if not self.requests and not self.transport.is_closing():
            self._limits.became_idle(self)

    def refuse(self, problem: Problem | None) -> None:
        """End the connection: with an answer that the client has time to read, or at once (None)."""
        if not self._refused:
            self._refused = True
            super().connection_lost(ConnectionAbortedError())  # uvicorn is done with it
            if problem is not None:
                self.transport.write(problem.message())
                # Closed at once, with bytes unread, the connection would be reset and the answer lost.
                self.transport.write_eof()
                asyncio.get_running_loop().call_later(_LINGER_SECONDS, self.transport.abort)
        if problem is None:
            self.transport.abort()

    def _check_head(self) -> None:
        if not self.requests and self.head_bytes > MOST_HEAD_BYTES:
            text = f"the head of the request is over {MOST_HEAD_BYTES} bytes"
            self.refuse(Problem(431, "head-too-large", text))


def _without_upgrade(data: bytes) -> bytes:
    """The data, with another name for an Upgrade header.

    Java's HttpClient asks for HTTP/2 with the first request of each connection. Nothing is upgraded here, but
    httptools would drop that request's body.
    """
    end = data.find(b"\r\n\r\n")
    found = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data if found is None else data[: found.start(1)] + b"x-upgrade" + data[found.end(1) :]


def most_connections(wanted: int) -> int:
    """How many connections the operating system lets this process have, at most ``wanted``.

    Raises the limit on open files as far as it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - _OTHER_FILES))
