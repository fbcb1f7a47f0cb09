"""Protection of a service without keys against web pages that the user happens to visit.

A page on any site can send forms to ``http://127.0.0.1:8000``, and with DNS rebinding read the answers. So
without keys, the Host header must name this machine, and requests that browsers mark as coming from another
site may not change anything. With keys, no foreign page can know them.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import Problem
from serve.settings import Settings

_SAFE = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "[::1]", "testserver"}


class Hosts:
    """The names under which this service answers.

    Args:
        settings: For the allowed hosts.
        has_keys: Whether keys protect the service already; any name will do then.
    """

    def __init__(self, settings: Settings, *, has_keys: bool) -> None:
        self._hosts = {*_LOOPBACK, settings.host, *settings.allowed_hosts}
        self._any = has_keys or not settings.is_loopback()

    def know(self, header: bytes) -> bool:
        """Whether a request with this Host header may pass."""
        return self._any or _host_name(header.decode("latin-1")) in self._hosts


class OriginGuard:
    """ASGI middleware: refuses foreign hosts and cross-site changes.

    Args:
        app: The application inside.
        settings: For the allowed hosts and origins.
        has_keys: Whether keys protect the service already.
    """

    def __init__(self, app: ASGIApp, settings: Settings, *, has_keys: bool) -> None:
        self._app = app
        self._origins = set(settings.cors_origins)
        self._hosts = Hosts(settings, has_keys=has_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            problem = self._foreign_host(headers) or self._cross_site(scope["method"], headers)
            if problem:
                await problem.response(scope.get("state", {}).get("request_id"))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _foreign_host(self, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self._hosts.know(host.encode("latin-1")):
            return None
        return Problem(
            421,
            "host",
            f"host {_host_name(host) or 'missing'}: without keys this service answers to this machine's names"
            " alone; set a key or KINDRED_ALLOWED_HOSTS",
        )

    def _cross_site(self, method: str, headers: Headers) -> Problem | None:
        if method in _SAFE:
            return None
        origin = headers.get("origin")
        if origin is None or origin in self._origins or urlsplit(origin).netloc == headers.get("host"):
            return None
        return Problem(
            403, "cross-site", f"origin {origin}: another site's page may not do this; see cors_origins"
        )


def _host_name(header: str) -> str:
    """The Host header without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].lower()
