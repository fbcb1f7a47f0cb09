"""The OpenAPI document's side of msgspec structs: FastAPI knows only pydantic's."""

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

from serve import schemas
from serve.problems import MEDIA_TYPE, ProblemDocument

_REF = "#/components/schemas/{name}"
_STRUCTS = [
    value
    for value in vars(schemas).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == schemas.__name__
]

_PROBLEM = {"schema": {"$ref": _REF.format(name=ProblemDocument.__name__)}}
_TEXTS = {
    400: "The body is malformed",
    401: "A key is needed",
    403: "The key does not suffice",
    404: "No such thing",
    408: "The body did not come",
    409: "The request does not fit the collection",
    413: "Body over the limit",
    415: "Body of an unknown type",
    422: "A value is unusable",
    429: "Overloaded; see Retry-After",
    507: "The disk is full",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: _PROBLEM}} for status, text in _TEXTS.items()
}
"""The problem answers that every route shares."""


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A struct (or plain JSON) as a response."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def answers(*structs: type[msgspec.Struct], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route that answers with one of ``structs`` or a problem."""
    options = [{"$ref": _REF.format(name=struct.__name__)} for struct in structs]
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return {
        status: {"description": "Done", "content": {"application/json": {"schema": schema}}},
        **PROBLEMS,
    }


def json_body(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The ``openapi_extra=`` of a route that takes ``struct`` as JSON."""
    schema = {"$ref": _REF.format(name=struct.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def image_body(
    struct: type[msgspec.Struct], *, files: tuple[str, ...] = ("image",), many: bool = False
) -> dict[str, Any]:
    """The ``openapi_extra=`` of a route that takes images (or one as the raw body) and a struct's fields."""
    binary = {"type": "string", "format": "binary"}
    file = {"type": "array", "items": binary, "minItems": 1} if many else binary
    form = {
        "type": "object",
        "required": list(files),
        "properties": {**{name: dict(file) for name in files}, **_form_fields(struct)},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if len(files) == 1:
        content |= {kind: {"schema": dict(binary)} for kind in ("image/*", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}


def _form_fields(struct: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """The fields of ``struct`` as form fields: objects and lists become JSON text."""
    (_, components) = msgspec.json.schema_components([struct], ref_template=_REF)
    result = {}
    for name, schema in components[struct.__name__]["properties"].items():
        kinds = str(schema)
        textual = "'object'" in kinds or "'array'" in kinds
        result[name] = {"type": "string", "description": "JSON text"} if textual else _without_null(schema)
    return result


def query_parameters(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The ``openapi_extra=`` of a route that takes the fields of ``struct`` in its query string."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in _form_fields(struct).items()
        ]
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A form field is there or not; null cannot be said."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option != {"type": "null"}]
        return dict(options[0]) if len(options) == 1 else {"anyOf": options}
    return {key: value for key, value in schema.items() if key != "default" or value is not None}


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make the app's OpenAPI document of the declared routes and the structs' schemas."""

    @functools.cache
    def openapi() -> dict[str, Any]:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=routes
        )
        (_, components) = msgspec.json.schema_components([*_STRUCTS, ProblemDocument], ref_template=_REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
