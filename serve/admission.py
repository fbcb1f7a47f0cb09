"""Admission control: an image that would wait too long is refused before its body is read.

By Little's law the wait of a newcomer is the number of images inside divided by the rate at which they leave.
That rate is measured, so the same latency budget holds on any machine and for any model. The law speaks of
means, the budget of nearly every request; so it is also measured by how much the slowest in a hundred exceed
what was predicted for them, and predictions are raised by that.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        self.promised = admission.predicted_seconds(admission.inside)
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
        self._expected = 0

    def predicted_seconds(self, before: int) -> float:
        """Time within which an image behind so many others would nearly surely be done."""
        return (before + 1) * self.seconds_per_image * self.excess

    def expect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say that a request was let through whose endpoint will ask in the loop's next turn.

        Of many requests that come in one turn, all would else be let through for the one free place.
        """
        self._expected += 1
        loop.call_soon(self._arrived)

    def _arrived(self) -> None:
        self._expected -= 1

    def refusal_of_arrival(self) -> Problem | None:
        """What a request would hear whose headers have just come, behind those that are expected."""
        return self._refusal(self.inside + self._expected)

    def _refusal(self, before: int) -> Problem | None:
        wait = self.predicted_seconds(before)
        if before < self._always or wait <= self._budget:
            return None
        return Problem(
            429,
            "overloaded",
            f"overloaded: {before} images wait, one more would take {wait:.1f} s; try again later",
            {"Retry-After": str(max(1, math.ceil(wait)))},
        )

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Hold a place while the block runs.

        Raises:
            Problem: 429 with Retry-After, when the newcomer would wait beyond the budget.
        """
        refusal = self._refusal(self.inside)
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
