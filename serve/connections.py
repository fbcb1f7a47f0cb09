"""Limits on connections: how many, how long a request's head may take, and how long it may be.

uvicorn has none of these. Its protocol is wrapped here: bytes pass through, and what is counted is how many
come before the application hears of a request.
"""

import asyncio
import resource
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from serve.observability import log
from serve.problems import Problem

MOST_HEAD_BYTES = 64 * 2**10
_SWEEP_SECONDS = 1.0
# How long the client of a refused connection has to read the answer.
_LINGER_SECONDS = 2.0
# Files that the process needs besides connections: stores, models, libraries.
_OTHER_FILES = 256
_current: ContextVar["Connection"] = ContextVar("connection")


class Connections:
    """All open connections.

    Args:
        most: How many there may be; beyond, the one that has been without a request for longest is closed.
        head_seconds: How long a connection may be without a request, or take to send the head of one.
        sweep: Called every second while connections are open.
    """

    def __init__(self, most: int, head_seconds: float, sweep: Callable[[], None] = lambda: None) -> None:
        self._most = most
        self._head_seconds = head_seconds
        self._also = sweep
        self._open: dict[Connection, None] = {}  # in the order in which they became idle
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, **uvicorn: Any) -> asyncio.Protocol:
        """The protocol of a new connection; uvicorn calls it as it would its own class."""
        return Connection(self, cast(Callable[..., asyncio.Protocol], AutoHTTPProtocol)(**uvicorn))

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
        latest = loop.time() - self._head_seconds
        for connection in [one for one in self._open if not one.requests and one.idle_since < latest]:
            text = f"the head of the request took longer than {self._head_seconds:g} s"
            connection.refuse(Problem(408, "head-timeout", text) if connection.head_bytes else None)
        self._also()
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(_SWEEP_SECONDS, self._sweep)


class Connection(asyncio.Protocol):
    """One connection, in front of uvicorn's protocol.

    Args:
        connections: All of them.
        inner: uvicorn's protocol.
    """

    _transport: asyncio.Transport

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._refused = False
        self.requests = 0  # under way
        self.head_bytes = 0  # that came since the last request
        self._body_bytes = 0  # that came during the last request
        self._dropped = 0  # bytes still to come of a body whose request has been answered
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._refused:
            return
        _current.set(self)  # the application's task inherits it
        self._inner.data_received(data)
        if self.requests:
            self._body_bytes += len(data)
            return
        dropped = min(len(data), self._dropped)
        self._dropped -= dropped
        self.head_bytes += len(data) - dropped
        if self.head_bytes > MOST_HEAD_BYTES:
            # Once the application's task has run: these bytes may hold a head and a body.
            asyncio.get_running_loop().call_soon(self._check_head)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return None if self._refused else self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._connections.remove(self)
        if not self._refused:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._inner.resume_writing()

    def begin_request(self) -> None:
        """The application has heard of a request."""
        self.requests += 1
        self.head_bytes = self._body_bytes = self._dropped = 0

    def end_request(self, body: int) -> None:
        """The application is done with it.

        Args:
            body: Length of its body, in bytes; what has not come yet is dropped when it does.
        """
        self.requests -= 1
        self._dropped = max(0, body - self._body_bytes)
        if not self.requests and not self._transport.is_closing():
            self._connections.became_idle(self)

    def refuse(self, problem: Problem | None) -> None:
        """End the connection, with an answer where somebody may be waiting for one."""
        if self._refused:
            return
        self._refused = True
        self._inner.connection_lost(ConnectionAbortedError())  # uvicorn has nothing to do with it any more
        if problem is None:
            self._transport.close()
            return
        self._transport.write(problem.message())
        # Closed at once, with bytes unread, the connection would be reset and the answer lost.
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)

    def _check_head(self) -> None:
        if not self.requests and self.head_bytes > MOST_HEAD_BYTES:
            text = f"the head of the request is over {MOST_HEAD_BYTES} bytes"
            self.refuse(Problem(431, "head-too-large", text))


def current() -> Connection | None:
    """The connection whose request the current task answers; None in process, without a server."""
    return _current.get(None)


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
