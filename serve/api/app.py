"""Puts the application together."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from models.bundle import Bundle
from serve import recall
from serve.api import (
    collection_routes,
    documents,
    embed_routes,
    health,
    imports,
    item_routes,
    page,
    search_routes,
)
from serve.api.guard import Guard
from serve.api.routing import include_routers
from serve.service import AnyCatalogue, Service
from serve.settings import Settings

_DESCRIPTION = """Visual search: embed images, store items, find their nearest neighbours.

Errors are problem documents (RFC 9457). Ids are strings or integers: in a path, `7` is the integer and `"7"`
(with its quotes, percent-encoded) the string."""


def create_app(settings: Settings, bundle: Bundle, catalogue: AnyCatalogue) -> FastAPI:
    """The service as an ASGI application; it closes ``catalogue`` at shutdown.

    The default collection has to be of the bundle's model.
    """
    service = Service(settings, bundle, catalogue)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # These objects stay until the end; garbage collection need not scan them again, for 100 ms each time.
        gc.collect()
        gc.freeze()
        service.find_backend()
        watching = None
        if settings.recall_seconds:
            watching = asyncio.create_task(recall.watch(service, settings.recall_seconds))
        yield
        if watching is not None:
            watching.cancel()
        await service.aclose()
        gc.unfreeze()  # or libraries report their objects as leaked, on standard error

    app = FastAPI(
        title="Kindred",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        # Costs a look-up at every request; /metrics has the same figures.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    # The most frequent first.
    routers = (
        search_routes.router,
        health.router,
        embed_routes.router,
        collection_routes.reading,
        collection_routes.writing,
        item_routes.reading,
        item_routes.writing,
        imports.router,
        page.router,
    )
    declared = include_routers(app, routers)
    documents.install(app, declared)
    # In place of FastAPI's own middlewares: the guard does the same, and faster.
    app.middleware_stack = Guard(app.router, service)
    if settings.cors_origins:  # outside of the guard: its refusals can be read by the allowed pages, too
        app.middleware_stack = CORSMiddleware(
            app.middleware_stack,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
