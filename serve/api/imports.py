"""``POST /v1/import``: items by the million, streamed in and stored while they come."""

import asyncio
import functools
from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.api.bodies import read_query
from serve.api.context import service_of
from serve.api.documents import PROBLEMS, query_parameters
from serve.api.error_responses import problem_of
from serve.api.item_routes import item_of
from serve.auth import write_key
from serve.observability import log
from serve.problems import Problem
from serve.schemas import CollectionName, ImportProgress, NewItem
from serve.store.types import Store, StoreError
from serve.uploads import IMPORT_PATH

router = APIRouter(tags=["items"])

# A transaction: so many lines, or so many bytes of them.
_LINES = 2000
_BYTES = 16 * 2**20
_MOST_LINE_BYTES = 1 << 20
# After so long without more lines, those that have come are stored.
_PAUSE_SECONDS = 1.0
_decoder = msgspec.json.Decoder(NewItem)


class _Lines(msgspec.Struct):
    """Some lines of the body that are not blank, the number of each, and of the last line that came."""

    texts: list[bytes] = []
    numbers: list[int] = []
    last: int = 0
    size: int = 0

    def add(self, text: bytes) -> None:
        """Takes the next line."""
        self.last += 1
        if text.strip():
            self.texts.append(text)
            self.numbers.append(self.last)
            self.size += len(text)


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
    responses={200: {"description": "Progress, one JSON object a line", "content": _SCHEMA}, **PROBLEMS},
    openapi_extra={
        "requestBody": {"required": True, "content": _SCHEMA},
        **query_parameters(ImportFields),
    },
)
async def import_items(request: Request) -> Response:
    """The body is one item a line, as in `POST /v1/items/vectors`; no limit holds for the whole of it.

    Each line of the answer says how many items are stored durably, and up to which line of the body. The
    last one has `done`, or `error` with the line that was `refused`, where it is the fault of one. All lines
    before that one are stored, and so is what came before the body broke off. Repeating an import changes
    nothing.
    """
    service = service_of(request)
    fields = read_query(request, ImportFields)
    store = await service.store(fields.collection)

    async def progress() -> AsyncIterator[bytes]:
        stored = line = 0
        refused: int | None = None
        try:
            async for lines in _blocks(request):
                work = functools.partial(_store, store, lines, fields.fingerprint)
                count, fault = await service.threads.change(work)
                stored += count
                if fault is not None:
                    refused = lines.numbers[fault[1]]
                    line = refused - 1
                    raise fault[0]
                line = lines.last
                yield _line(ImportProgress(stored=stored, line=line))
            yield _line(ImportProgress(stored=stored, line=line, done=True))
        except Exception as error:  # noqa: BLE001  (the status is sent, so the last line has to tell)
            problem = problem_of(error, service.settings)
            if problem.status == 500:
                log.error("an import failed", exc_info=error)
            yield _line(
                ImportProgress(
                    stored=stored,
                    line=line,
                    error=problem.detail if refused is None else f"line {refused}: {problem.detail}",
                    status=problem.status,
                    code=problem.code,
                    refused=refused,
                )
            )

    return _Answering(progress(), media_type="application/x-ndjson")


class _Answering(StreamingResponse):
    """Streams an answer while the request's body is still being read.

    Starlette's own waits for the client to disconnect meanwhile, and would consume parts of the body.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the answer; whoever reads the body notices that a client disconnects."""
        await self.stream_response(send)


def _line(progress: ImportProgress) -> bytes:
    return msgspec.json.encode(progress) + b"\n"


async def _blocks(request: Request) -> AsyncIterator[_Lines]:
    """Lines of the body as they come: some thousands at a time, some megabytes of long ones, or all so far.

    Lines that have come whole are handed on before an error is raised.
    """
    chunks = request.stream()
    coming = asyncio.ensure_future(anext(chunks, None))
    lines, rest = _Lines(), b""
    try:
        while len(rest) <= _MOST_LINE_BYTES:  # `_store` refuses a longer one
            await asyncio.wait([coming], timeout=_PAUSE_SECONDS)
            if lines.texts and (not coming.done() or coming.exception() is not None):
                yield lines
                lines = _Lines(last=lines.last)
            if not coming.done():
                continue
            chunk = coming.result()
            if chunk is None:
                break
            coming = asyncio.ensure_future(anext(chunks, None))
            *whole, rest = (rest + chunk).split(b"\n")
            for text in whole:
                lines.add(text)
                if len(lines.texts) >= _LINES or lines.size >= _BYTES:
                    yield lines
                    lines = _Lines(last=lines.last)
    finally:
        coming.cancel()
    if rest:
        lines.add(rest)
    if lines.texts:
        yield lines


def _store(store: Store, lines: _Lines, fingerprint: str | None) -> tuple[int, tuple[Exception, int] | None]:
    """Stores lines up to the first that is at fault.

    Returns:
        The number of items, and the fault with its position among the lines.
    """
    items = []
    fault: Exception | None = None
    for text in lines.texts:
        try:
            if len(text) > _MOST_LINE_BYTES:
                raise Problem(413, "line-too-long", f"over {_MOST_LINE_BYTES} bytes; put one item on a line")
            items.append(item_of(_decoder.decode(text)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            fault = Problem(422, "line", str(error))
            break
        except Problem as error:
            fault = error
            break
    try:
        stored = store.upsert(items, fingerprint=fingerprint)
    except StoreError as error:
        if error.position is None:
            raise
        items, fault = items[: error.position], error
        stored = store.upsert(items, fingerprint=fingerprint)
    return stored, None if fault is None else (fault, len(items))
