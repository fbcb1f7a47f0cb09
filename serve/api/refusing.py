"""Refusing images under overload, as soon as their headers are here and for as little as possible.

Under overload most requests end here, so what a refusal costs decides how much is left for the admitted ones:
no scope, no task and no middleware is made for it, and the body is dropped as it comes. The endpoints ask
:meth:`serve.admission.Admission.admit` all the same, for whatever does not come this way.
"""

import asyncio
import logging
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.admission import Admission
from serve.observability import RequestLog, incoming_id, log, new_request_id
from serve.problems import MEDIA_TYPE
from serve.settings import Settings

# Requests that carry images, by path.
_WITH_IMAGES = {
    path.encode(): path for path in ("/v1/search", "/v1/search/batch", "/v1/embed", "/v1/verify", "/v1/items")
}
# A refused body up to this length is read and dropped, for a new connection would cost more; the sender of a
# longer one is told to stop.
_DROPPED_BYTES = 2**20
_LINGER_SECONDS = 5.0  # how long a sender who was told to stop has to hear it
_HEAD = (
    "HTTP/1.1 429 Too Many Requests\r\n%s"
    f"content-type: {MEDIA_TYPE}\r\n"
    "content-length: %d\r\nretry-after: %s\r\nx-request-id: %s\r\n%s\r\n"
).encode()
_LOG_SECONDS = 1.0


class Refusals:
    """What all connections of a service know of refusing.

    Args:
        admission: Decides who is refused.
        requests: Counts the requests.
        settings: For the limits of a body.
    """

    def __init__(self, admission: Admission, requests: RequestLog, settings: Settings) -> None:
        self.admission = admission
        self.idle_seconds = settings.body_seconds
        self.most_bytes = settings.max_body_bytes
        self.origins = {origin.encode() for origin in settings.cors_origins}
        self._requests = requests
        self._unlogged: Counter[str] = Counter()

    def count(self, path: str, seconds: float, request_id: str) -> None:
        """Count a refusal; the log has one line a second for all of them, and each on the level DEBUG."""
        self._requests.account(path, "POST", 429, seconds, request_id, level=logging.DEBUG)
        if not self._unlogged:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._tell)
        self._unlogged[path] += 1

    def _tell(self) -> None:
        for path, count in self._unlogged.items():
            fields = {"method": "POST", "route": path, "status": 429, "count": count}
            log.warning(
                "POST %s 429: %d refused in %g s", path, count, _LOG_SECONDS, extra={"fields": fields}
            )
        self._unlogged.clear()


class RefusingProtocol(HttpToolsProtocol):
    """One connection that answers images with 429 while the service is overloaded.

    Args:
        refusals: What the connections share.
        **uvicorn: What uvicorn gives to a protocol.
    """

    def __init__(self, refusals: Refusals, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._refusals = refusals
        self._dropping = False  # the body of a refused request is coming in
        self._lingering = 0  # bytes that a sender who was told to stop may still send

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._lingering:
            self._lingering -= len(data)
            if self._lingering <= 0:
                self.transport.abort()
            return
        super().data_received(data)
        if self._dropping:
            self._end_after(_LINGER_SECONDS if self._lingering else self._refusals.idle_seconds)

    def on_headers_complete(self) -> None:
        """The parser saw the end of the headers."""
        if self._lingering:
            return
        path = _WITH_IMAGES.get(self.url.partition(b"?")[0])
        if path is None or self.parser.get_method() != b"POST":
            super().on_headers_complete()
        elif not self._refuses(path):
            self._refusals.admission.expect(self.loop)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser saw a part of a body."""
        if not self._dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser saw the last byte of a request."""
        if not self._dropping:
            super().on_message_complete()
        elif self._lingering:
            self.transport.close()
        else:
            self._dropping = False
            self._end_after(self.timeout_keep_alive)

    def is_idle(self) -> bool:
        """Whether nothing is worked on, being dropped or waiting to be sent."""
        cycle_ended = self.cycle is None or self.cycle.response_complete
        return cycle_ended and not self._dropping and not self.flow.write_paused

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; what comes behind a connection's last answer has none."""
        if not self._lingering:
            super().send_400_response(msg)

    def _refuses(self, path: str) -> bool:
        """Refuse the request whose headers are here, if nothing is under way and the service overloaded."""
        started = time.perf_counter()
        shared = self._refusals
        fields = dict(self.headers)
        # A page of an allowed origin can read an answer only with headers that the application adds.
        if not self.is_idle() or self.parser.should_upgrade() or fields.get(b"origin") in shared.origins:
            return False
        refusal = shared.admission.refusal_of_arrival()
        if refusal is None:
            return False
        last = self._must_be_last(fields)
        request_id = incoming_id(self.headers) or new_request_id()
        body = refusal.body(request_id)
        head = _HEAD % (
            b"".join(b"%s: %s\r\n" % header for header in self.server_state.default_headers),
            len(body),
            refusal.headers["Retry-After"].encode(),
            request_id.encode(),
            b"connection: close\r\n" if last else b"",
        )
        self.transport.write(head + body)
        self._dropping = True
        if last:
            # Closed at once, with bytes unread, the connection would be reset and the answer lost.
            self.transport.write_eof()
            self._lingering = shared.most_bytes
        self.server_state.total_requests += 1
        shared.count(path, time.perf_counter() - started, request_id)
        return True

    def _must_be_last(self, fields: dict[bytes, bytes]) -> bool:
        """Whether the connection has to end: because it is asked for, or for the body's sake."""
        if self.expect_100_continue or not self.parser.should_keep_alive() or b"transfer-encoding" in fields:
            return True
        return int(fields.get(b"content-length", b"0")) > _DROPPED_BYTES

    def _end_after(self, seconds: float) -> None:
        """End the connection if nothing comes for so long."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
