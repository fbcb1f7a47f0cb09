"""The body limit, enforced while the body streams in."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem


class BodyLimit:
    """ASGI middleware: refuses a body over ``max_bytes``, from its Content-Length or at the byte that exceeds
    it.

    Args:
        app: The application inside.
        max_bytes: Largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max:
            response = self._problem().response(scope.get("state", {}).get("request_id"))
            await response(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max:
                    raise self._problem()
            return message

        await self._app(scope, limited, send)

    def _problem(self) -> Problem:
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
