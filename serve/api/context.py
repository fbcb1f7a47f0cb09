"""What the routers share: the service behind a request, limits on its options, and a stopwatch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serve.problems import Problem
from serve.schemas import SearchOptions
from serve.service import Service


def service_of(request: Request) -> Service:
    """The service behind the request's app."""
    service: Service = request.app.state.service
    return service


def check_options(options: SearchOptions, service: Service) -> None:
    """Refuse (422) options over the operator's limits."""
    check_k(options.k, service)
    check_batch(len(options.exclude), service, "excluded ids")


def check_k(k: int, service: Service) -> None:
    """Refuse (422) a number of neighbours over the operator's limit."""
    limit = service.settings.max_k
    if k > limit:
        raise Problem(422, "k-too-large", f"k {k}: over this service's limit of {limit}")


def check_batch(count: int, service: Service, things: str) -> None:
    """Refuse (422) a number of things in one request over the operator's limit."""
    limit = service.settings.max_batch
    if count > limit:
        raise Problem(
            422, "batch-too-large", f"{count} {things}: over the limit of {limit} a request; send parts"
        )


class Stopwatch:
    """Milliseconds by stage of one request."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as the stage ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record(name, (time.perf_counter() - started) * 1000.0)

    def record(self, name: str, milliseconds: float) -> None:
        """Add a stage that was timed elsewhere."""
        self.timings_ms[name] = round(milliseconds, 3)

    def finish(self, service: Service) -> dict[str, float]:
        """Close the total, report all to the metrics, and return the stages."""
        self.record("total", (time.perf_counter() - self._started) * 1000.0)
        service.metrics.stages(self.timings_ms)
        return self.timings_ms
