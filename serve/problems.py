"""Errors as RFC 9457 problem documents: what went wrong, with which thing, and the remedy."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

MEDIA_TYPE = "application/problem+json"


class ProblemDocument(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of every error answer.

    Attributes:
        type: A stable name of the kind of error, ``urn:kindred:problem:<code>``.
        title: The HTTP status in words.
        status: The HTTP status code.
        detail: One line naming the thing and the remedy.
        request_id: The request's id, as in the log and the ``X-Request-ID`` header.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None


class Problem(Exception):  # noqa: N818  (it is an answer, and is named as the RFC names it)
    """An answer that is an error.

    Args:
        status: HTTP status code.
        code: Short stable name of the kind of error, in kebab case.
        detail: One line naming the thing and the remedy.
        headers: Extra response headers, such as Retry-After.
    """

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self, request_id: str | None = None) -> bytes:
        """The problem document as JSON."""
        document = ProblemDocument(
            type=f"urn:kindred:problem:{self.code}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=one_line(self.detail),
            request_id=request_id,
        )
        return msgspec.json.encode(document)

    def message(self) -> bytes:
        """The problem as a whole HTTP message that ends its connection, for where there is no application."""
        body = self.body()
        fields = {
            "content-type": MEDIA_TYPE,
            "content-length": len(body),
            **self.headers,
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n{lines}\r\n".encode() + body


def one_line(text: str, limit: int = 500) -> str:
    """``text`` on one line, cut at ``limit`` characters, with lone surrogates replaced (JSON is UTF-8)."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    flat = " ".join(clean.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
