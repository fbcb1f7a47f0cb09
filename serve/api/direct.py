"""The short way of vector searches: around the middlewares and FastAPI, for the requests that are in order.

A search of a graph takes a quarter of a millisecond; routing, dependency injection and seven middlewares take
three times that. So the common request is answered here, and only with success: whatever is unusual about one
(another site's page, a slow body, a key that does not open, a value that does not fit) goes to the whole
application, untouched, and gets its answer there: they must agree on what is in order, not on how to refuse.

Those that come in one piece have a way that is shorter still, see `serve.api.wire`; here they come when they
need a thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api import raw, search
from serve.auth import presented_key
from serve.observability import RequestLog, incoming_id, log, new_request_id
from serve.origin import Hosts
from serve.service import Service

_Answer = Callable[[Service, bytes, bytes], Awaitable[bytes]]
# By path: the content types that need no second look (None: any), and what answers.
_ROUTES: dict[str, tuple[bytes | None, _Answer]] = {
    raw.PATH: (None, raw.answer),
    search.VECTOR_PATH: (b"application/json", search.answer_vector),
}
# Of a length that anybody means; Python refuses to read a number of thousands.
_DIGITS = 15
_JSON = (b"content-type", b"application/json")


class Keeper:
    """Knows which headers need no look by the whole application.

    Args:
        service: The service.
    """

    def __init__(self, service: Service) -> None:
        self._hosts = Hosts(service.settings, has_keys=service.keys.any)
        self._keys = service.keys
        self._most = service.settings.max_body_bytes

    def in_order(self, headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
        """Headers of a POST by name, None unless they open the service and hold nothing unusual.

        Args:
            headers: Names in lower case, and values.
        """
        fields = dict(headers)
        if len(fields) < len(headers) or b"origin" in fields:  # one twice: which counts?
            return None
        length = fields.get(b"content-length", b"")
        if not length.isdigit() or len(length) > _DIGITS or int(length) > self._most:
            return None
        if not self._hosts.know(fields.get(b"host", b"")):
            return None
        if self._keys.any and not self._keys.may_read(presented_key(_text(fields))):
            return None
        return fields


class Direct:
    """ASGI application that answers vector searches which are in order, and passes everything else on.

    Args:
        app: The whole application, with all its middlewares.
        service: The service.
        keeper: Decides what is in order.
        requests: Counts and logs the requests.
    """

    def __init__(self, app: ASGIApp, service: Service, keeper: Keeper, requests: RequestLog) -> None:
        self._app = app
        self._service = service
        self._keeper = keeper
        self._requests = requests
        self._idle = service.settings.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        route = _ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or not self._in_order(scope, route[0]):
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._idle):
                first = await receive()
        except TimeoutError:
            await self._app(scope, receive, send)  # which waits once more, and then refuses
            return
        if first["type"] == "http.request" and not first.get("more_body", False):
            body = first.get("body", b"")
            try:
                answer = await route[1](self._service, scope["query_string"], body)
            except Exception as error:  # noqa: BLE001  (the application inside meets it again, and words it)
                log.debug("%s goes the long way: %s", scope["path"], error)
            else:
                await self._send(scope, send, answer, started)
                return
        await self._app(scope, _replaying(first, receive), send)

    def _in_order(self, scope: Scope, kind: bytes | None) -> bool:
        """Whether the application inside would have nothing to object to."""
        if scope["method"] != "POST":
            return False
        fields = self._keeper.in_order(scope["headers"])
        return fields is not None and kind in (None, fields.get(b"content-type"))

    async def _send(self, scope: Scope, send: Send, answer: bytes, started: float) -> None:
        request_id = incoming_id(scope["headers"]) or new_request_id()
        length = str(len(answer)).encode()
        headers = [_JSON, (b"content-length", length), (b"x-request-id", request_id.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        seconds = time.perf_counter() - started
        self._requests.account(scope["path"], "POST", 200, seconds, request_id)


def _text(headers: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def _replaying(first: Message, receive: Receive) -> Receive:
    """What receives `first` once more, and then the rest."""
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
