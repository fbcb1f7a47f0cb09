"""The guard: what every request passes before its route, and every answer after it.

It also protects a service against web pages that its user visits. A page on any site can send forms to
``http://127.0.0.1:8000``, and with DNS rebinding read the answers. So without a read key, the Host header
must name this machine, and requests that browsers mark as coming from another site may not change anything.
Other sites' pages do not know the read key.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.error_responses import problem_of
from serve.connections import current
from serve.observability import log, request_id_of
from serve.problems import MEDIA_TYPE, Problem
from serve.service import Service
from serve.settings import host_name
from serve.uploads import IMPORT_PATH, Upload, too_large

# Requests that carry images: refused under overload before their bodies come.
_WITH_IMAGES = {"/v1/search", "/v1/search/batch", "/v1/embed", "/v1/verify", "/v1/items"}
_QUIET = {"/healthz", "/readyz", "/metrics", "unknown"}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "testserver"}
_REPORT_SECONDS = 1.0


class Guard:
    """ASGI middleware: request id, clock and log; host, origin, length, overload; exceptions as problems."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        settings = service.settings
        self._hosts = {*_LOOPBACK, settings.host, *settings.allowed_hosts}
        # With a read key, the data is protected already.
        self._any_host = service.keys.protect_reading or settings.public_reads or not settings.is_loopback()
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        path = scope["path"].removeprefix(scope.get("root_path", ""))  # where a proxy shows the service
        upload = Upload(self._service.uploads, receive, limited=path != IMPORT_PATH)
        connection = current.get()
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
            response = Response(problem.body(request_id), problem.status, problem.headers, MEDIA_TYPE)
            await response(scope, receive, send_with_id)
        finally:
            upload.close()
            if connection is not None:
                connection.end_request()
            route = scope.get("kindred_route", path if path in _WITH_IMAGES else "unknown")
            self._account(route, scope["method"], status or 500, time.perf_counter() - started, request_id)

    def _check(self, method: str, path: str, fields: dict[bytes, bytes]) -> None:
        """Refuse a request before its body is read."""
        self._check_origin(method, fields)
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

    def _check_origin(self, method: str, fields: dict[bytes, bytes]) -> None:
        """Refuse foreign hosts, and changes by other sites' pages."""
        host = fields.get(b"host", b"").decode("latin-1")
        if not self._any_host and host_name(host) not in self._hosts:
            raise Problem(
                421,
                "host",
                f"host {host or 'missing'}: without a read key, this service answers to this machine's "
                "names; set KINDRED_READ_KEY, KINDRED_ALLOWED_HOSTS or public_reads",
            )
        if method in _SAFE or b"origin" not in fields:
            return
        # Browsers set it themselves, and it holds behind a proxy that gives the request another Host.
        if fields.get(b"sec-fetch-site") == b"same-origin":
            return
        origin = fields[b"origin"].decode("latin-1")
        place = origin.partition("://")[2]
        allowed = origin in self._service.settings.cors_origins or place == host
        if not allowed and host_name(place) not in self._hosts - _LOOPBACK:
            raise Problem(
                403,
                "cross-site",
                f"origin {origin}: another site's page may not do this; see cors_origins and allowed_hosts",
            )

    def _account(self, route: str, method: str, status: int, seconds: float, request_id: str) -> None:
        level = logging.DEBUG if route in _QUIET and status < 500 else logging.INFO
        if status == 429:
            level = logging.DEBUG
            self._report_refusals()
        self._service.metrics.request(route, method, status, seconds)
        if log.isEnabledFor(level):
            milliseconds = round(seconds * 1000.0, 2)
            fields = {
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": status,
                "ms": milliseconds,
            }
            text = "%s %s %d %.1f ms"
            log.log(level, text, method, route, status, milliseconds, extra={"fields": fields})

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
    """Headers by name; a host, origin or content-length that comes twice is refused."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields and name in (b"host", b"origin", b"content-length"):
            raise Problem(400, "header-twice", f"header {name.decode()}: sent twice; send it once")
        fields[name] = value
    return fields
