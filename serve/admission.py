"""Admission control: an image that would wait too long is refused before its body is read.

By Little's law the wait of a newcomer is the number of images inside divided by the rate at which they leave.
That rate is measured, so the same latency budget holds on any machine and for any model.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.problems import Problem

_SMOOTHING = 0.05  # weight of one departure in the measured rate


class Place:
    """A request that was let in.

    Args:
        admission: Who let it in.
    """

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.images = 1
        self.started = False

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
        self.inside = 0
        self.working = 0

    def predicted_seconds(self) -> float:
        """Time until one more image would be done."""
        return (self.inside + 1) * self.seconds_per_image

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Hold a place while the block runs.

        Raises:
            Problem: 429 with Retry-After, when the newcomer would wait beyond the budget.
        """
        wait = self.predicted_seconds()
        if self.inside >= self._always and wait > self._budget:
            raise Problem(
                429,
                "overloaded",
                f"overloaded: {self.inside} images wait, one more would take {wait:.1f} s; try again later",
                {"Retry-After": str(max(1, math.ceil(wait)))},
            )
        place = Place(self)
        self.inside += 1
        try:
            yield place
            if place.started:  # a failed request leaves early and would flatter the rate
                self._depart(place.images)
        finally:
            self.inside -= place.images
            if place.started:
                self.working -= place.images

    def _depart(self, images: int) -> None:
        now = time.perf_counter()
        each = (now - self.departed_at) / images
        self.departed_at = now
        if self.seconds_per_image == 0.0:
            self.seconds_per_image = each
        else:
            self.seconds_per_image += _SMOOTHING * (each - self.seconds_per_image)
