"""Every exception as a problem document."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from models.errors import InputError
from models.preprocess import ImageError
from serve.problems import Problem
from serve.settings import Settings
from serve.store import types

# The most specific first: the first class that fits decides.
_KINDS: tuple[tuple[type[InputError], int, str], ...] = (
    (ImageError, 422, "image"),
    (types.ItemMissing, 404, "item-missing"),
    (types.StoreMissing, 404, "collection-missing"),
    (types.DimensionMismatch, 422, "dimension"),
    (types.FingerprintMismatch, 409, "fingerprint"),
    (types.FilterError, 422, "filter"),
    (types.ReadOnly, 403, "read-only"),
    (types.DiskFull, 507, "disk-full"),
    (types.StoreBehind, 503, "store-behind"),
    (types.StoreDamaged, 500, "store-damaged"),
    (types.StoreUnreachable, 503, "store-unreachable"),
    (types.Unsupported, 501, "unsupported"),
    (types.StoreError, 422, "store"),
    (InputError, 422, "invalid"),
)


def problem_of(error: Exception, settings: Settings) -> Problem:
    """The problem document of an exception; an unexpected one is a plain 500.

    Callers do not learn where the service's files are: of their paths, only the last part is shown.
    """
    if isinstance(error, Problem):
        return error
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Problem(status, code, _without_folders(str(error), settings))
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


def _without_folders(text: str, settings: Settings) -> str:
    for folder in (settings.store, settings.bundle):
        if isinstance(folder, Path) and folder.name:
            for path in (folder.absolute(), folder):
                text = text.replace(f"{path}", path.name)
    return text
