"""Request bodies: JSON into structs, multipart and raw images into bytes."""

import asyncio
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve.api.context import service_of
from serve.problems import Problem

S = TypeVar("S", bound=msgspec.Struct)
R = TypeVar("R")

_MAX_FIELD_BYTES = 1 << 20
_MOST_VALUES = 1 << 20
_MOST_FIELDS = 32
# Larger bodies are decoded in a thread.
_LARGE_BYTES = 1 << 18
_JSON_FIELDS = ("filter", "exclude", "metadata")


@functools.cache
def _decoder(struct: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(struct)


@dataclass
class Form:
    """What a form holds.

    Attributes:
        fields: Text fields; a repeated one keeps its last value.
        files: Contents of the file fields, by name, in order.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


async def read_body(request: Request) -> bytes:
    """The whole body; ClientDisconnect if the client goes away before its end.

    Several times as fast as Starlette's own `body`, which is a generator.
    """
    chunks: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def read_json(request: Request, struct: type[S]) -> S:
    """The body as ``struct``.

    Raises:
        Problem: 400 for malformed JSON, 413 for too many values, 415 for another type, 422 for JSON that does
            not fit.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(415, "not-json", f"content type {kind}: this endpoint takes application/json")
    body = await read_body(request)
    # A number of two bytes takes a hundred times as much memory once decoded.
    if body.count(b",") > _MOST_VALUES:
        raise Problem(413, "too-many-values", f"body: over {_MOST_VALUES} values; send parts")
    return await offload(_decoded, body, struct, size=len(body))


def _decoded(body: bytes, struct: type[S]) -> S:
    try:
        value: S = _decoder(struct).decode(body)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid", f"body: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed", f"body: no valid JSON ({error})") from error
    return value


async def offload(function: Callable[..., R], *arguments: Any, size: int) -> R:
    """``function(*arguments)``, in a thread where ``size`` bytes of input would block the event loop."""
    if size <= _LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


async def read_images(request: Request, *names: str, many: bool = False) -> Form:
    """The body as a form with image files; a body that is an image itself counts as the file ``names[0]``.

    Query parameters count as fields too; form fields win. The file fields must be those in ``names``, each
    with one file unless ``many``.

    Raises:
        Problem: 400 malformed, 415 another type, 422 a file is missing or surplus.
    """
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        most = service_of(request).settings.max_batch + _MOST_FIELDS
        body = await read_body(request)
        form = await offload(parse_multipart, body, header, most, size=len(body))
    elif len(names) == 1 and (kind.startswith("image/") or kind == "application/octet-stream"):
        form = Form(files={names[0]: [await read_body(request)]})
    else:
        raise Problem(
            415,
            "not-an-upload",
            f"content type {kind or 'missing'}: send multipart/form-data with the file field"
            f"{'s' if len(names) > 1 else ''} {', '.join(names)} (curl -F {names[0]}=@FILE)",
        )
    form.fields = {**dict(request.query_params), **form.fields}
    for name in names:
        if not form.files.get(name):
            raise Problem(
                422, "image-missing", f"file field {name} is missing; curl -F {name}=@FILE sends it"
            )
    for name, contents in form.files.items():
        if name not in names:
            text = f"file field {name}: no such file; send {', '.join(names)} as a file and options as text"
            raise Problem(422, "file-unknown", text)
        if len(contents) > 1 and not many:
            text = f"file field {name}: {len(contents)} files; this endpoint takes one"
            raise Problem(422, "too-many-files", text)
    return form


def fields_as(fields: dict[str, str], struct: type[S]) -> S:
    """Text fields as ``struct`` (or 422): numbers and booleans are read from text, JSON fields are parsed."""
    values: dict[str, Any] = dict(fields)
    for name in _JSON_FIELDS:
        if name in values:
            try:
                values[name] = msgspec.json.decode(values[name])
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise Problem(422, "invalid", f"field {name}: no valid JSON ({error})") from error
    try:
        result = msgspec.convert(values, struct, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid", f"fields: {error}") from error
    for name in struct.__struct_fields__:
        value = getattr(result, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise Problem(422, "invalid", f"field {name}: {value} is not a finite number")
    return result


def read_query(request: Request, struct: type[S]) -> S:
    """The query string as ``struct``; see `fields_as`."""
    return fields_as(dict(request.query_params), struct)


def parse_multipart(body: bytes, content_type: str, most_parts: int) -> Form:
    """Split a multipart body that is in memory; malformed it is a 400, with too many parts a 413."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "malformed", "multipart body: its content type names no boundary")
    collector = _Collector(most_parts)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "malformed", f"multipart body: {error}") from error
    if not collector.complete:
        raise Problem(400, "malformed", "multipart body: it ends before its closing boundary; send it whole")
    return collector.form


class _Collector:
    """Takes the multipart parser's callbacks."""

    def __init__(self, most_parts: int) -> None:
        self.form = Form()
        self.complete = False
        self._parts_left = most_parts
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._data: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts_left -= 1
        if self._parts_left < 0:
            raise Problem(413, "too-many-parts", "multipart body: too many parts; send several requests")
        self._headers = {}
        self._data = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name")
        if name is None:
            raise Problem(400, "malformed", "multipart body: a part has no name")
        key = name.decode("utf-8", "replace")
        content = b"".join(self._data)
        # The parser does not know the extended form, which some clients send alone.
        if b"filename" in options or b"filename*=" in disposition:
            self.form.files.setdefault(key, []).append(content)
        elif len(content) > _MAX_FIELD_BYTES:
            raise Problem(
                413, "field-too-large", f"field {key}: over {_MAX_FIELD_BYTES} bytes; send it as a file"
            )
        else:
            try:
                self.form.fields[key] = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Problem(
                    400, "malformed", f"field {key}: not UTF-8; send files with a file name"
                ) from error

    def _end(self) -> None:
        self.complete = True
