"""``/healthz``, ``/readyz`` and ``/metrics``, for monitoring."""

import asyncio
import math

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serve.api.context import service_of
from serve.api.documents import answers, reply
from serve.auth import read_key
from serve.observability import log
from serve.schemas import Health
from serve.service import Service
from serve.store.types import SearchQuery

router = APIRouter(tags=["health"])

_PRECHECK_SECONDS = 10.0
_FRESH_SECONDS = 1.0


@router.get("/healthz", summary="Is the process alive?", responses=answers(Health))
async def healthz(_request: Request) -> Response:
    """Answers as long as the process runs."""
    return reply(Health(status="ok"))


@router.get(
    "/readyz",
    summary="Does the service work?",
    responses={**answers(Health), 503: {"description": "It does not; `detail` says why"}},
)
async def readyz(request: Request) -> Response:
    """Embeds and searches a canary image, which detects a broken model or index; at most once a second."""
    service = service_of(request)
    # One precheck a second, however many ask.
    if service.precheck is None or service.precheck_expires < asyncio.get_running_loop().time():
        service.precheck = asyncio.ensure_future(_precheck(service))
        service.precheck_expires = math.inf
    fault = await asyncio.shield(service.precheck)
    if fault:
        return reply(Health(status="unavailable", detail=fault), 503, {"Retry-After": "5"})
    return reply(Health(status="ok"))


async def _precheck(service: Service) -> str | None:
    """What is wrong with the service, or None."""
    try:
        async with asyncio.timeout(_PRECHECK_SECONDS):
            store = await service.store()  # first: a reload may replace the pipeline meanwhile
            embedded, fault = await service.pipeline.precheck()
            if fault is not None:
                return fault
            query = SearchQuery(1, fingerprint=embedded.fingerprint)
            result = await service.threads.search(store, embedded.vector, query)
            if not result.hits[0] and await service.threads.call(store.count) > 0:
                return "the store has items but finds none"
            return None
    except TimeoutError:
        return f"the precheck took over {_PRECHECK_SECONDS:.0f} s"
    except Exception as error:  # noqa: BLE001  (whatever it is, the service is not ready)
        log.exception("the precheck failed")
        return f"the precheck failed: {type(error).__name__}"
    finally:
        service.precheck_expires = asyncio.get_running_loop().time() + _FRESH_SECONDS


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(read_key)],
    response_class=Response,
    responses={200: {"description": "Exposition format", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Latencies by stage, batch sizes, queues, refusals, and the measured recall of the live index."""
    service = service_of(request)
    await service.threads.call(service.refresh_gauges)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
