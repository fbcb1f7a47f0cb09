"""Admission control: an image that would wait too long is refused.

By Little's law the wait of a newcomer is the number of images inside divided by the rate at which they leave.
That rate is measured, so the same latency budget holds on any machine and for any model. The law predicts the
mean, while the budget is for 99% of requests; so predictions are multiplied by the measured excess of
the slowest in a hundred.

An image counts as inside once all its bytes have arrived; `serve.uploads` limits bodies on their way.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.problems import Problem

_SMOOTHING = 0.05  # weight of one departure in the measured rate
# The share of requests that should stay within the budget, and how far one request moves the factor.
_KEPT = 0.99
_STEP = 0.02


class Admission:
    """Counts the images inside and refuses those that would be inside for over `budget_ms` milliseconds.

    For use on one event loop; not thread-safe.
    """

    def __init__(self, budget_ms: float) -> None:
        self._budget = budget_ms / 1000.0
        self._departed_at = 0.0
        self.seconds_per_image = 0.0
        self.excess = 1.0
        self.inside = 0

    def predicted_seconds(self, images: int) -> float:
        """Seconds within which 99% of requests with so many more images would finish."""
        return (self.inside + images) * self.seconds_per_image * self.excess

    def refusal(self, images: int) -> Problem | None:
        """The refusal of a request with so many images; None where it is admitted.

        Where nothing is inside, every request is admitted: it would not be faster later.
        """
        wait = self.predicted_seconds(images)
        if self.inside == 0 or wait <= self._budget:
            return None
        more = "one more" if images == 1 else f"{images} more"
        return Problem(
            429,
            "overloaded",
            f"overloaded: {self.inside} images wait, {more} would take {wait:.1f} s; try again later",
            {"Retry-After": str(max(1, math.ceil(wait)))},
        )

    @contextmanager
    def admit(self, images: int = 1) -> Iterator[None]:
        """Count so many images as inside while the block works on them; see `refusal` for the 429."""
        refusal = self.refusal(images)
        if refusal is not None:
            raise refusal
        promised = self.predicted_seconds(images)
        began = time.perf_counter()
        if self.inside == 0:
            self._departed_at = began  # a busy period begins
        self.inside += images
        try:
            yield
            # A failed request leaves early and would flatter the rate.
            self._depart(images, began, promised)
        finally:
            self.inside -= images

    def _depart(self, images: int, began: float, promised: float) -> None:
        now = time.perf_counter()
        each = (now - self._departed_at) / images
        if promised and images == 1:
            # Follows a quantile: a big step up when one took longer than promised, else a small one down.
            late = now - began > promised
            factor = 1.0 + _STEP * (_KEPT if late else _KEPT - 1.0)
            self.excess = min(8.0, max(1.0, self.excess * factor))
        self._departed_at = now
        if self.seconds_per_image == 0.0:
            self.seconds_per_image = each
        else:
            self.seconds_per_image += _SMOOTHING * (each - self.seconds_per_image)
