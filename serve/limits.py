"""The body limit, enforced while the body streams in."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem

# An import is stored while it streams in and never lies in memory as a whole, so no limit holds for its
# length.
IMPORT_PATH = "/v1/import"


class BodyLimit:
    """ASGI middleware: refuses bodies that are too long or that do not come.

    The length is judged by the Content-Length, and without one at the byte that exceeds the limit.

    Args:
        app: The application inside.
        max_bytes: Largest body.
        idle_seconds: Longest silence in the middle of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, idle_seconds: float) -> None:
        self._app = app
        self._max = max_bytes
        self._idle = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = scope["path"] != IMPORT_PATH
        announced = Headers(scope=scope).get("content-length", "0")
        if limited and announced.isdecimal() and int(announced) > self._max:
            response = self._too_large().response(scope.get("state", {}).get("request_id"))
            await response(scope, receive, send)
            return
        received = 0
        complete = False

        async def watched() -> Message:
            nonlocal received, complete
            if complete:  # whoever still listens waits for the client to go, which may take its time
                return await receive()
            try:
                async with asyncio.timeout(self._idle):
                    message = await receive()
            except TimeoutError as error:
                text = f"no byte of the body came for {self._idle:g} s; send it again"
                raise Problem(408, "body-timeout", text, {"Connection": "close"}) from error
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if limited and received > self._max:
                    raise self._too_large()
            return message

        await self._app(scope, watched, send)

    def _too_large(self) -> Problem:
        # The rest of the body is not worth reading: the connection ends with the answer.
        return Problem(
            413,
            "body-too-large",
            f"the body is over the limit of {self._max} bytes; send fewer or smaller images at once",
            {"Connection": "close"},
        )


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request, for handlers outside FastAPI.

    Raises:
        ConnectionError: The client went away.
    """
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away")
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
