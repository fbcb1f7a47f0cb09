"""From declared routes to routes that answer.

FastAPI's routers declare the API, and its OpenAPI document is made of them. Requests go to plain Starlette
routes: FastAPI's own match each one several times, solve dependencies and validate bodies, which takes
longer than a search. The only dependencies are the checks of keys; `serve.api.bodies` reads bodies.
"""

from collections.abc import Iterable
from urllib.parse import quote

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class _ItemId(Convertor[str]):
    """Any text. Starlette's own `path` stops at a line break and would confuse ids."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value


register_url_convertor("item_id", _ItemId())
ITEM = "/items/{item_id:item_id}"


class _Endpoint:
    """Answers the requests of one path; its functions take the request, and the path's parameters by name."""

    def __init__(self, routes: list[APIRoute]) -> None:
        self._path = routes[0].path_format
        self._routes = {
            method: (route.endpoint, [one.dependency for one in route.dependencies if one.dependency])
            for route in routes
            for method in route.methods or ()
        }
        self.methods = list(self._routes)
        if "GET" in self._routes:
            self._routes["HEAD"] = self._routes["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["kindred_route"] = self._path
        request = Request(scope, receive, send)
        function, checks = self._routes[scope["method"]]
        for check in checks:
            check(request)
        response = await function(request, **scope["path_params"])
        await response(scope, receive, send)


async def _without_slash(request: Request) -> Response:
    """Redirect from a path that ends with a slash; a relative address is right behind any proxy."""
    name = request.scope["path"].removesuffix("/").rpartition("/")[2]
    query = request.scope["query_string"].decode("latin-1")
    return Response(status_code=307, headers={"Location": f"../{quote(name)}{query and '?'}{query}"})


def include_routers(app: FastAPI, routers: Iterable[APIRouter]) -> list[APIRoute]:
    """Let ``app`` answer the routes of the routers, the first one that fits; returns their declarations.

    The path of an item may end in anything: it comes after all others.
    """
    declared = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    by_path: dict[str, list[APIRoute]] = {}
    for route in declared:
        by_path.setdefault(route.path, []).append(route)
    ordered = sorted(by_path.items(), key=lambda one: one[0].endswith(ITEM))
    for path, routes in ordered:  # together, so that a 405 lists all methods
        endpoint = _Endpoint(routes)
        app.router.routes.append(Route(path, endpoint, methods=endpoint.methods))
    app.router.redirect_slashes = False
    app.router.routes.append(Route("/{path:path}/", _without_slash, methods=_METHODS))
    return declared
