"""Limits on incoming request bodies: length, silence, time, number, and bytes held at once."""

import asyncio

from starlette.types import Message, Receive

from serve.connections import Connection, current
from serve.problems import Problem
from serve.settings import Settings

# An import is stored while it comes in and never lies in memory as a whole, so neither its length nor its
# time has a limit.
IMPORT_PATH = "/v1/import"

# An upload younger than this is not ended for a new one: its speed is not known yet.
_GRACE_SECONDS = 2.0


class Upload:
    """One request's body on its way; only a `limited` one has limits on length and total time."""

    def __init__(self, uploads: "Uploads", receive: Receive, *, limited: bool) -> None:
        self._uploads = uploads
        self._receive = receive
        self._refusal: Problem | None = None
        self._complete = False
        self.limited = limited
        self.started = self.moved = 0.0  # when its first byte was waited for, when the last one came
        self.bytes = 0

    async def receive(self) -> Message:
        """The next message of the body; 408 if it is too slow, 413 too long, 429 too much at once."""
        if self._complete:  # the caller waits for the client to disconnect
            return await self._receive()
        uploads = self._uploads
        if not self.started:
            uploads.admit(self)
        message = await (self._receive() if self.limited else self._receive_in_time())
        if self._refusal is not None:
            raise self._refusal
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes += size
            uploads.bytes += size
            self.moved = asyncio.get_running_loop().time()
            if self.limited and self.bytes > uploads.settings.max_body_bytes:
                raise too_large(uploads.settings.max_body_bytes)
            if not message.get("more_body", False):
                self._complete = True
                uploads.open.pop(self, None)
            elif uploads.bytes > uploads.settings.max_upload_bytes:
                raise _too_much("bytes come in")
        return message

    async def _receive_in_time(self) -> Message:
        """As the server's `receive`, with a timeout: an import reports it in the answer that it has begun."""
        seconds = self._uploads.settings.body_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._receive()
        except TimeoutError as error:
            raise _too_slow(f"no byte of the body came for {seconds:g} s") from error

    def close(self) -> None:
        """The request has been answered: its body no longer counts."""
        self._uploads.open.pop(self, None)
        self._uploads.bytes -= self.bytes

    def give_up(self, connection: Connection, reason: str) -> None:
        """Answer with status 408 and end the connection."""
        self._refusal = _too_slow(reason)
        self._uploads.open.pop(self, None)
        connection.refuse(self._refusal)


class Uploads:
    """The bodies that are coming in, of all connections.

    When there are too many, the slowest is ended, so that many clients that hardly send anything do not block
    the others.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.open: dict[Upload, Connection | None] = {}
        self.bytes = 0

    def admit(self, upload: Upload) -> None:
        """Admit a body, or refuse it (429) where there are too many and none of them is slow."""
        upload.started = upload.moved = now = asyncio.get_running_loop().time()
        if len(self.open) >= self.settings.max_uploads:
            slow = [
                (other.bytes / (now - other.started), number, other, connection)
                for number, (other, connection) in enumerate(self.open.items())
                if connection is not None and other.limited and now - other.started > _GRACE_SECONDS
            ]
            if not slow:
                raise _too_much(f"bodies ({len(self.open)}) come in")
            *_, victim, connection = min(slow)
            victim.give_up(connection, "too many bodies come in at once, and this one was the slowest")
        self.open[upload] = current.get()

    def sweep(self) -> None:
        """End those that are too slow; called every second."""
        now = asyncio.get_running_loop().time()
        idle, total = self.settings.body_seconds, self.settings.upload_seconds
        for upload, connection in list(self.open.items()):
            if connection is None or not upload.limited:
                continue
            if now - upload.moved > idle:
                upload.give_up(connection, f"no byte of the body came for {idle:g} s")
            elif now - upload.started > total:
                upload.give_up(connection, f"the body took longer than {total:g} s")


def too_large(limit: int) -> Problem:
    """The refusal of too long a body; the connection ends, because the rest is not read."""
    text = f"the body is over the limit of {limit} bytes; send fewer or smaller images at once"
    return Problem(413, "body-too-large", text, {"Connection": "close"})


def _too_slow(reason: str) -> Problem:
    return Problem(408, "body-timeout", f"{reason}; send it again", {"Connection": "close"})


def _too_much(what: str) -> Problem:
    text = f"too many {what} at once; try again later"
    return Problem(429, "too-many-uploads", text, {"Retry-After": "1", "Connection": "close"})
