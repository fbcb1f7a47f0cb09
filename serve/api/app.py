"""Puts the application together."""

import asyncio
import functools
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from models.bundle import Bundle
from serve import recall
from serve.api import collections as collection_routes
from serve.api import (
    direct,
    documents,
    embed,
    errors,
    health,
    imports,
    items,
    page,
    raw,
    refusing,
    search,
    wire,
)
from serve.collections import Collections
from serve.limits import BodyLimit
from serve.observability import RequestContext, RequestLog
from serve.origin import OriginGuard
from serve.service import Service
from serve.settings import Settings

_DESCRIPTION = """Visual search: embed images, store items, find their nearest neighbours.

Errors are problem documents (RFC 9457). Ids are strings or integers: in a path, `7` is the integer and `"7"`
(with its quotes, percent-encoded) the string."""


class _Application(FastAPI):
    """FastAPI behind `front`, which answers some requests itself and passes the others on to `whole`."""

    front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        await (self.front or self.whole)(scope, receive, send)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection by FastAPI and all middlewares."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, bundle: Bundle, collections: Collections) -> FastAPI:
    """The service as an ASGI application; it closes ``collections`` at shutdown.

    Args:
        settings: What the operator decided.
        bundle: The model.
        collections: What is searched; the default one has to be of the same model.
    """
    service = Service(settings, bundle, collections)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # What was made until now stays for good; no collection has to look through it again, for 100 ms each.
        gc.collect()
        gc.freeze()
        watching = None
        if settings.recall_seconds:
            watching = asyncio.create_task(recall.watch(service, settings.recall_seconds))
        yield
        if watching is not None:
            watching.cancel()
        await service.aclose()
        gc.unfreeze()  # or libraries find their objects never freed, and complain on standard error

    app = _Application(
        title="Kindred",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.service = service
    # Paths of items end in anything, so the routes with a fixed ending come first.
    for router in (
        health.router,
        search.router,
        embed.router,
        collection_routes.router,
        items.router,
        imports.router,
        page.router,
    ):
        app.include_router(router)
    errors.install(app)
    documents.install(app)
    # Added last is outermost.
    app.add_middleware(raw.RawSearch, service=service)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, idle_seconds=settings.body_seconds)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(OriginGuard, settings=settings, has_keys=service.keys.any)
    app.add_middleware(errors.LastResort)
    requests = RequestLog(service.metrics)
    app.add_middleware(RequestContext, requests=requests)
    keeper = direct.Keeper(service)
    app.front = direct.Direct(app.whole, service, keeper, requests)
    refusals = refusing.Refusals(service.admission, requests, settings)
    app.state.protocol = functools.partial(wire.WireProtocol, service, keeper, requests, refusals=refusals)
    return app
