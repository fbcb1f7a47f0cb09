"""``POST /v1/import``: items by the million, streamed in and stored while they come."""

from collections.abc import AsyncIterator, Callable

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.api.bodies import fields_as
from serve.api.context import service_of
from serve.api.documents import form_fields, problems, query_parameters
from serve.api.errors import problem_of
from serve.api.items import items_of
from serve.auth import write_key
from serve.observability import log
from serve.problems import Problem
from serve.schemas import CollectionName, ImportProgress, NewItem
from serve.store.protocol import Store
from serve.uploads import IMPORT_PATH

router = APIRouter(tags=["items"])

# A transaction: so many lines, or so many bytes of them.
_LINES = 2000
_BYTES = 16 * 2**20
_MOST_LINE_BYTES = 1 << 20
_decoder = msgspec.json.Decoder(NewItem)


class ImportFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the items go, and the model that made their vectors."""

    collection: CollectionName | None = None
    fingerprint: str | None = None


_SCHEMA = {"application/x-ndjson": {"schema": {"type": "string"}}}


@router.post(
    IMPORT_PATH,
    summary="Store many items, with progress",
    dependencies=[Depends(write_key)],
    response_class=StreamingResponse,
    responses={200: {"description": "Progress, one JSON object a line", "content": _SCHEMA}, **problems()},
    openapi_extra={
        "requestBody": {"required": True, "content": _SCHEMA},
        **query_parameters(form_fields(ImportFields)),
    },
)
async def import_items(request: Request) -> Response:
    """The body is one item a line, as in `POST /v1/items/vectors`; no limit holds for the whole of it.

    Each line of the answer says how many items are stored for good; the last one has `done`, or `error` with
    the line that was refused. What was stored before stays, and repeating an import changes nothing.
    """
    service = service_of(request)
    fields = fields_as(dict(request.query_params), ImportFields)
    store = await service.store(fields.collection)

    async def progress() -> AsyncIterator[bytes]:
        stored = 0
        try:
            async for lines in _blocks(request):
                work = _storing(store, lines, stored, fields.fingerprint)
                stored += await service.threads.call(work)
                yield _line(ImportProgress(stored=stored))
            yield _line(ImportProgress(stored=stored, done=True))
        except Exception as error:  # noqa: BLE001  (the status is sent, so the last line has to tell)
            problem = problem_of(error, service.settings)
            if problem.status == 500:
                log.exception("an import failed")
            yield _line(
                ImportProgress(stored=stored, error=problem.detail, status=problem.status, code=problem.code)
            )

    return _Answering(progress(), media_type="application/x-ndjson")


class _Answering(StreamingResponse):
    """Streams an answer while the request's body is still being read.

    Starlette's own listens for the client's departure meanwhile, and would swallow parts of the body.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the answer; the body's reader notices a client that goes."""
        await self.stream_response(send)


def _line(progress: ImportProgress) -> bytes:
    return msgspec.json.encode(progress) + b"\n"


async def _blocks(request: Request) -> AsyncIterator[list[bytes]]:
    """Lines of the body as they come: some thousands at a time, or some megabytes of long ones."""
    lines: list[bytes] = []
    size = 0
    rest = b""
    async for chunk in request.stream():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MOST_LINE_BYTES:
            raise Problem(
                413, "line-too-long", f"a line is over {_MOST_LINE_BYTES} bytes; put one item on each"
            )
        for line in whole:
            if not line.strip():
                continue
            lines.append(line)
            size += len(line)
            if len(lines) >= _LINES or size >= _BYTES:
                yield lines
                lines, size = [], 0
    if rest.strip():
        lines.append(rest)
    if lines:
        yield lines


def _storing(store: Store, lines: list[bytes], before: int, fingerprint: str | None) -> Callable[[], int]:
    """The work of one block; ``before`` items came ahead of it."""

    def work() -> int:
        items = []
        for number, line in enumerate(lines, before + 1):
            try:
                items.append(_decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise Problem(422, "line", f"item {number}: {error}") from error
        return store.upsert(items_of(items), fingerprint=fingerprint)

    return work
