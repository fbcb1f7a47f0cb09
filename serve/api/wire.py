"""The shortest way of vector searches: from the socket's bytes to the answer's, without scope or task.

uvicorn makes of each request a scope, a cycle, a task and several messages; that takes half as long as the
search of a graph. A request that came whole, in one piece, on a connection where nothing else is under way,
needs none of it. As in `serve.api.direct`, only what is in order is answered here, and only with success; all
other bytes go to uvicorn's parser as if nobody had looked at them. So what is recognized here is deliberately
a small part of HTTP, and nothing is ever refused for being outside it.
"""

import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.api import raw, search
from serve.api.direct import Keeper
from serve.api.refusing import RefusingProtocol
from serve.observability import RequestLog, incoming_id, log, new_request_id
from serve.service import Service

_Answer = Callable[[Service, bytes, bytes], bytes | None]
# By path: the content type that a request must have (None: any), and what answers, or says None.
_ROUTES: dict[str, tuple[bytes | None, _Answer]] = {
    raw.PATH: (None, raw.answer_at_once),
    search.VECTOR_PATH: (b"application/json", search.answer_vector_at_once),
}
_STARTS = tuple(f"POST {path}".encode() for path in _ROUTES)
_HEAD = re.compile(rb"POST ([\w/]+)(?:\?([\w=&.%-]*))? HTTP/1\.1\r\n((?:[\w-]+:[\t -~]*\r\n)+)\r\n", re.ASCII)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\n%scontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\n\r\n%s"
)
# Headers that change how the message is to be read or answered.
_UNUSUAL = {b"transfer-encoding", b"expect", b"upgrade"}


@dataclass(frozen=True, slots=True)
class _Head:
    """Request line and headers that were found in order.

    Attributes:
        text: They themselves, with the empty line that ends them.
        path: What is asked.
        answer: What answers.
        length: Bytes of the whole request.
        query: The query string.
        request_id: The caller's id for the request, if there is a usable one.
    """

    text: bytes
    path: str
    answer: _Answer
    length: int
    query: bytes
    request_id: str | None


class WireProtocol(RefusingProtocol):
    """One connection: answers vector searches that are in order, and leaves everything else to the parser.

    Args:
        service: The service.
        keeper: Decides what is in order.
        requests: Counts and logs the requests.
        **others: What uvicorn gives to a protocol, and what refusing takes.
    """

    def __init__(self, service: Service, keeper: Keeper, requests: RequestLog, **others: Any) -> None:
        super().__init__(**others)
        self._service = service
        self._keeper = keeper
        self._requests = requests
        self._between = True  # no byte of an unfinished request has gone to the parser
        self._head: _Head | None = None  # the last one; most clients send the same again and again
        self._answered_at = 0.0

    def on_message_begin(self) -> None:
        """The parser saw the first byte of a request."""
        self._between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """The parser saw the last byte of a request."""
        self._between = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes came: a whole request, a part of one, or several."""
        if not (data.startswith(_STARTS) and self._between and self.is_idle() and self._answers(data)):
            super().data_received(data)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough; the timer outlives answers from here."""
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _answers(self, data: bytes) -> bool:
        """Answer if ``data`` is a request in order."""
        started = time.perf_counter()
        head = self._head
        # The head holds the key, so the time of its comparison must not tell how much of it was right.
        known = head is not None and len(data) == head.length
        if not (known and hmac.compare_digest(data[: len(head.text)], head.text)):  # type: ignore[union-attr]
            head = self._head = self._read_head(data)
        if head is None:
            return False
        try:
            body = head.answer(self._service, head.query, data[len(head.text) :])
        except Exception as error:  # noqa: BLE001  (the application meets it again, and words it)
            log.debug("%s goes the long way: %s", head.path, error)
            return False
        if body is None:
            return False
        request_id = head.request_id or new_request_id()
        dated = b"".join(b"%s: %s\r\n" % header for header in self.server_state.default_headers)
        self.transport.write(_ANSWER % (dated, len(body), request_id.encode(), body))
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()
        self._requests.account(head.path, "POST", 200, time.perf_counter() - started, request_id)
        return True

    def _read_head(self, data: bytes) -> _Head | None:
        """The head of a whole request in order, None for all others."""
        match = _HEAD.match(data)
        path = match[1].decode() if match else ""
        if match is None or path not in _ROUTES:
            return None
        headers = []
        for line in match[3].split(b"\r\n")[:-1]:
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip(b" \t")))
        fields = self._keeper.in_order(headers)
        kind, answer = _ROUTES[path]
        if fields is None or not _UNUSUAL.isdisjoint(fields):
            return None
        if kind is not None and fields.get(b"content-type") != kind:
            return None
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        length = match.end() + int(fields[b"content-length"])
        if len(data) != length:
            return None
        return _Head(match[0], path, answer, length, match[2] or b"", incoming_id(headers))
