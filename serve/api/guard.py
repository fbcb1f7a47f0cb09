"""The guard: what every request passes before its route, and every answer after it."""

import asyncio
import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.error_responses import problem_of, response_of
from serve.connections import current
from serve.observability import incoming_id, log, new_request_id
from serve.origin import Origins
from serve.problems import Problem
from serve.service import Service
from serve.uploads import IMPORT_PATH, too_large

# Requests that carry images: refused under overload before their bodies come.
_WITH_IMAGES = {"/v1/search", "/v1/search/batch", "/v1/embed", "/v1/verify", "/v1/items"}
_QUIET = {"/healthz", "/readyz", "/metrics", "unknown"}
_REPORT_SECONDS = 1.0


class Guard:
    """ASGI middleware: request id, clock and log; host, origin, length, overload; exceptions as problems.

    Args:
        app: The application inside.
        service: The service.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._origins = Origins(service.settings, reading_needs_key=service.keys.protect_reading)
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = incoming_id(scope["headers"]) or new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        path = scope["path"].removeprefix(scope.get("root_path", ""))  # where a proxy shows the service
        upload = self._service.uploads.begin(path, receive)
        connection = current()
        if connection is not None:
            connection.begin_request(scope["headers"])
        try:
            fields = _fields(scope["headers"])
            self._check(scope["method"], path, fields)
            await self._app(scope, upload.receive, send_with_id)
        except Exception as error:
            problem = problem_of(error, self._service.settings)
            if problem.status >= 500:
                log.error("%s", problem.detail, exc_info=error, extra={"fields": {"request_id": request_id}})
            if status:
                raise
            await response_of(problem, request_id)(scope, receive, send_with_id)
        finally:
            upload.close()
            if connection is not None:
                connection.end_request()
            route = scope.get("kindred_route", path if path in _WITH_IMAGES else "unknown")
            self._account(route, scope["method"], status or 500, time.perf_counter() - started, request_id)

    def _check(self, method: str, path: str, fields: dict[bytes, bytes]) -> None:
        """Check the request before its body is read.

        Raises:
            Problem: It is refused.
        """
        self._origins.check(method, fields)
        announced = fields.get(b"content-length", b"")
        limit = self._service.settings.max_body_bytes
        # The length comes first: Python refuses to read a number of thousands of digits.
        if path != IMPORT_PATH and announced.isdigit() and (len(announced) >= 20 or int(announced) > limit):
            raise too_large(limit)
        encoding = fields.get(b"content-encoding", b"").decode("latin-1").strip()
        if encoding.lower() not in ("", "identity"):
            raise Problem(415, "encoded", f"content-encoding {encoding}: send the body as it is")
        if path in _WITH_IMAGES and method == "POST":
            refusal = self._service.admission.refusal(1)
            if refusal is not None:
                raise refusal

    def _account(self, route: str, method: str, status: int, seconds: float, request_id: str) -> None:
        level = logging.DEBUG if route in _QUIET and status < 500 else logging.INFO
        if status == 429:
            level = logging.DEBUG
            self._report_refusals()
        self._service.requests.account(route, method, status, seconds, request_id, level=level)

    def _report_refusals(self) -> None:
        """One line a second for all refusals: under overload they are most of the requests."""
        if not self._refused:
            asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._report)
        self._refused += 1

    def _report(self) -> None:
        fields = {"status": 429, "count": self._refused}
        log.warning("%d requests refused in %g s", self._refused, _REPORT_SECONDS, extra={"fields": fields})
        self._refused = 0


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name.

    Raises:
        Problem: 400, host, origin or content-length comes twice.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields and name in (b"host", b"origin", b"content-length"):
            raise Problem(400, "header-twice", f"header {name.decode()}: sent twice; send it once")
        fields[name] = value
    return fields
