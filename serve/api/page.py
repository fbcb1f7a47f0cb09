"""The web page at ``/``: static files, and a policy that allows nothing else."""

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve.problems import Problem

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only files present at the start are served; no name from a request reaches the file system.
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_HEADERS = {
    # Everything comes from this origin; pictures may also be those the person has just picked (blob:).
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


# The reference is rendered from the OpenAPI document without requests to other hosts. Browsers request the
# icon by themselves.
_PAGES = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}


@router.get("/")
@router.get("/docs")
@router.get("/favicon.ico")
async def page(request: Request) -> Response:
    """The page, the API's reference, the icon."""
    return _file(_PAGES[request.scope["kindred_route"]])


@router.get("/page/{name}")
async def file(_request: Request, name: str) -> Response:
    """One of the page's files."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in _FILES:
        raise Problem(404, "missing", f"page file {name}: not found")
    path = _FILES[name]
    return Response(path.read_bytes(), headers={**_HEADERS, "Content-Type": _TYPES[path.suffix]})
