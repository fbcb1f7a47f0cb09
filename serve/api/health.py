"""``/healthz``, ``/readyz`` and ``/metrics``, for whoever watches the service."""

import asyncio
import math

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serve.api.context import service_of
from serve.api.documents import answers, reply
from serve.auth import read_key
from serve.canary import run_canary
from serve.observability import log
from serve.schemas import Health
from serve.service import Service

router = APIRouter(tags=["health"])

_CANARY_SECONDS = 10.0
_FRESH_SECONDS = 1.0


@router.get("/healthz", summary="Is the process alive?", responses=answers(Health))
async def healthz(_request: Request) -> Response:
    """Answers as long as the process does."""
    return reply(Health(status="ok"))


@router.get(
    "/readyz",
    summary="Does the service work?",
    responses={**answers(Health), 503: {"description": "It does not; `detail` says why"}},
)
async def readyz(request: Request) -> Response:
    """Embeds and searches a canary image, so that a dead model or index shows; known for a second."""
    wrong = await _canary(service_of(request))
    if wrong:
        return reply(Health(status="unavailable", detail=wrong), 503, {"Retry-After": "5"})
    return reply(Health(status="ok"))


async def _canary(service: Service) -> str | None:
    """What is wrong with the service, asked at most once a second, by however many."""
    if service.canary is None or service.canary_ends < asyncio.get_running_loop().time():
        service.canary = asyncio.ensure_future(_sing(service))
        service.canary_ends = math.inf
    return await asyncio.shield(service.canary)


async def _sing(service: Service) -> str | None:
    try:
        async with asyncio.timeout(_CANARY_SECONDS):
            store = await service.store()  # first: a reload may replace the pipeline meanwhile
            return await run_canary(service.pipeline, service.threads, store)
    except TimeoutError:
        return f"the canary took over {_CANARY_SECONDS:.0f} s"
    except Exception as error:  # noqa: BLE001  (whatever it is, the service is not ready)
        log.exception("the canary failed")
        return f"the canary failed: {type(error).__name__}"
    finally:
        service.canary_ends = asyncio.get_running_loop().time() + _FRESH_SECONDS


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
