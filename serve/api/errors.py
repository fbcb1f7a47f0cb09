"""Every exception as a problem document."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from models.errors import InputError
from models.preprocess import ImageError
from serve.observability import log
from serve.problems import Problem, request_id_of
from serve.store.protocol import (
    DimensionMismatch,
    DiskFull,
    FilterError,
    FingerprintMismatch,
    ItemMissing,
    ReadOnly,
    StoreDamaged,
    StoreError,
    StoreMissing,
    StoreUnreachable,
    Unsupported,
)

# The most special first: the first class that fits decides.
_KINDS: tuple[tuple[type[InputError], int, str], ...] = (
    (ImageError, 422, "image"),
    (ItemMissing, 404, "item-missing"),
    (StoreMissing, 404, "collection-missing"),
    (DimensionMismatch, 422, "dimension"),
    (FingerprintMismatch, 409, "fingerprint"),
    (FilterError, 422, "filter"),
    (ReadOnly, 403, "read-only"),
    (DiskFull, 507, "disk-full"),
    (StoreDamaged, 500, "store-damaged"),
    (StoreUnreachable, 503, "store-unreachable"),
    (Unsupported, 501, "unsupported"),
    (StoreError, 422, "store"),
    (InputError, 422, "invalid"),
)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception means to the caller; what is no fault of theirs is a plain 500."""
    if isinstance(error, Problem):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Problem(status, code, str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Problem(422, "invalid", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if isinstance(error, HTTPException):
        remedy = {
            404: "no such path; /docs lists all",
            405: "this path takes another method; /docs lists all",
        }
        headers = dict(error.headers or {})
        return Problem(error.status_code, "http", remedy.get(error.status_code, str(error.detail)), headers)
    if isinstance(error, ClientDisconnect):
        return Problem(400, "disconnected", "the client went away before its body was complete")
    return Problem(500, "internal", "an error of the service; its log has the details under this request id")


def install(app: FastAPI) -> None:
    """Answer every exception of ``app`` with a problem document."""
    for kind in (Problem, InputError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _handler)


async def _handler(request: Request, error: Exception) -> Response:
    return problem_of(error).response(request_id_of(request))


class LastResort:
    """ASGI middleware that turns what nothing else caught into a logged, bare 500 problem.

    Starlette's own would print the traceback a second time through the server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting(message) -> None:  # type: ignore[no-untyped-def]
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                log.exception(
                    "unhandled error", extra={"fields": {"request_id": request_id_of(Request(scope))}}
                )
            if started:
                raise
            await problem.response(request_id_of(Request(scope)))(scope, receive, send)
