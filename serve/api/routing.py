"""From declared routes to routes that answer.

FastAPI's routers declare the API, and its OpenAPI document is made of them. Requests go to plain Starlette
routes: FastAPI's own match each one several times, solve dependencies and validate bodies, which takes
longer than a search. The only dependencies are the checks of keys; `serve.api.bodies` reads bodies.
"""

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class _Endpoint:
    """Answers the requests of one route.

    Args:
        route: Its declaration; the function takes the request, and the path's parameters by name.
    """

    def __init__(self, route: APIRoute) -> None:
        self._path = route.path_format
        self._checks = [depends.dependency for depends in route.dependencies if depends.dependency]
        self._function = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["kindred_route"] = self._path
        request = Request(scope, receive, send)
        for check in self._checks:
            check(request)
        response = await self._function(request, **scope["path_params"])
        await response(scope, receive, send)


def include_routers(app: FastAPI, routers: Iterable[APIRouter]) -> list[APIRoute]:
    """Let ``app`` answer the routes of the routers, the first one that fits; returns their declarations."""
    declared = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    for route in declared:
        app.router.routes.append(Route(route.path, _Endpoint(route), methods=route.methods))
    return declared
