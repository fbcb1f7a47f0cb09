"""Admission control: an image that would wait too long is refused before its body is read.

By Little's law the wait of a newcomer is the number of images inside divided by the rate at which they leave.
That rate is measured, so the same latency budget holds on any machine and for any model. The law speaks of
means, the budget of nearly every request; so it is also measured by how much the slowest in a hundred exceed
what was predicted for them, and predictions are raised by that.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import Problem

_SMOOTHING = 0.05  # weight of one departure in the measured rate
# The part of the admitted that should stay within the budget, and how far one of them moves the excess.
_KEPT = 0.99
_STEP = 0.02


class Place:
    """A request that was let in.

    Args:
        admission: Who let it in.
    """

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.images = 1
        self.started = False
        self.promised = admission.predicted_seconds()
        self._began = 0.0

    def start(self, images: int = 1) -> None:
        """Say that the body has arrived, and how many images it holds: the work begins here.

        The time of the upload is the client's own and must not count as slowness of the service.
        """
        admission = self._admission
        admission.inside += images - self.images
        if admission.working == 0:
            admission.departed_at = time.perf_counter()  # a busy period begins
        admission.working += images
        self.images = images
        self.started = True
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.perf_counter() - self._began


class Admission:
    """Counts the images inside and refuses those that would exceed the latency budget.

    For use on one event loop; not thread-safe.

    Args:
        budget_ms: Longest acceptable predicted time inside, in milliseconds.
        always: So many images are let in whatever the prediction (enough to keep every core busy).
    """

    def __init__(self, budget_ms: float, always: int) -> None:
        self._budget = budget_ms / 1000.0
        self._always = always
        self.departed_at = 0.0
        self.seconds_per_image = 0.0
        self.excess = 1.0
        self.inside = 0
        self.working = 0

    def predicted_seconds(self) -> float:
        """Time within which one more image would nearly surely be done."""
        return (self.inside + 1) * self.seconds_per_image * self.excess

    def refusal(self) -> Problem | None:
        """What a newcomer would hear now: nothing, or 429 with Retry-After."""
        wait = self.predicted_seconds()
        if self.inside < self._always or wait <= self._budget:
            return None
        return Problem(
            429,
            "overloaded",
            f"overloaded: {self.inside} images wait, one more would take {wait:.1f} s; try again later",
            {"Retry-After": str(max(1, math.ceil(wait)))},
        )

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Hold a place while the block runs.

        Raises:
            Problem: 429 with Retry-After, when the newcomer would wait beyond the budget.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        place = Place(self)
        self.inside += 1
        try:
            yield place
            if place.started:  # a failed request leaves early and would flatter the rate
                self._depart(place)
        finally:
            self.inside -= place.images
            if place.started:
                self.working -= place.images

    def _depart(self, place: Place) -> None:
        now = time.perf_counter()
        each = (now - self.departed_at) / place.images
        if place.promised and place.images == 1:
            # Follows a quantile: a big step up when one took longer than promised, else a small one down.
            late = place.seconds > place.promised
            factor = 1.0 + _STEP * (_KEPT if late else _KEPT - 1.0)
            self.excess = min(8.0, max(1.0, self.excess * factor))
        self.departed_at = now
        if self.seconds_per_image == 0.0:
            self.seconds_per_image = each
        else:
            self.seconds_per_image += _SMOOTHING * (each - self.seconds_per_image)


# Requests that carry images, by path.
_WITH_IMAGES = {"/v1/search", "/v1/search/batch", "/v1/embed", "/v1/verify", "/v1/items"}


class OverloadGate:
    """ASGI middleware that refuses images before anything else is done for them.

    Under overload most requests end here, so what they cost decides how much is left for the admitted ones.
    The endpoints ask :meth:`Admission.admit` all the same: this only spares the way to them.

    Args:
        app: The application inside.
        admission: Who decides.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _WITH_IMAGES:
            refusal = self._admission.refusal()
            if refusal is not None:
                scope["kindred_route"] = scope["path"]
                await refusal.response(scope.get("state", {}).get("request_id"))(scope, receive, send)
                return
        await self._app(scope, receive, send)
