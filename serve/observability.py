"""Request ids, structured logs and Prometheus metrics."""

import json
import logging
import random
import re
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

log = logging.getLogger("kindred.serve")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")


class Metrics:
    """The service's Prometheus metrics, in a registry of their own (one process may have several apps)."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "kindred_requests",
            "Requests by route and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "kindred_request_seconds",
            "Time from first byte to last.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "kindred_stage_seconds",
            "Time in each stage of a query: waiting for it and being in it.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        # Looking a metric up by its labels takes longer than counting.
        self._stages: dict[str, Histogram] = {}
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.batch_size = Histogram(
            "kindred_batch_size",
            "Items in one pass.",
            ["stage"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.queue_depth = Gauge("kindred_queue_depth", "Items that wait.", ["stage"], registry=registry)
        self.connections = Gauge("kindred_connections", "Open connections.", registry=registry)
        self.uploads = Gauge("kindred_uploads", "Request bodies that are coming in.", registry=registry)
        self.inside = Gauge(
            "kindred_images_inside", "Images admitted and not yet answered.", registry=registry
        )
        self.items = Gauge("kindred_items", "Items stored.", ["collection"], registry=registry)
        self.index_trouble = Gauge(
            "kindred_index_trouble",
            "1 while background work on the index fails and is tried again, else 0.",
            ["collection"],
            registry=registry,
        )
        self.recall = Gauge(
            "kindred_index_recall",
            "Recall@10 of the live index against an exact scan, on sampled stored vectors.",
            ["collection"],
            registry=registry,
        )
        self.recall_samples = Counter(
            "kindred_index_recall_samples", "Queries behind that recall.", ["collection"], registry=registry
        )

    def stages(self, timings_ms: dict[str, float]) -> None:
        """Record one query's time by stage."""
        for stage, milliseconds in timings_ms.items():
            meter = self._stages.get(stage)
            if meter is None:
                meter = self._stages[stage] = self.stage_seconds.labels(stage)
            meter.observe(milliseconds / 1000.0)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request.

        ``route`` is its template, never the path itself: ids in labels would make as many series as items.
        """
        meters = self._requests.get((route, method, status))
        if meters is None:
            shown = method if status != 405 else "other"
            meters = self._requests[route, method, status] = (
                self.requests.labels(route, shown, str(status)),
                self.request_seconds.labels(route),
            )
        meters[0].inc()
        meters[1].observe(seconds)

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the record carries as ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, style: str) -> None:
    """Send the service's and uvicorn's logs to standard error, as JSON lines or as text."""
    handler = logging.StreamHandler()
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    for name in ("kindred", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # It warns of each malformed form, and its lines would be in no format.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    # Requests are logged by serve.api.guard, with ids and routes; uvicorn's lines would double them.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.access").propagate = False


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own X-Request-ID, if it is short and plain enough to log; else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    # No secret, so that the system's slower randomness is not needed.
    return f"{random.getrandbits(64):016x}"
