"""When to try again, and after how long."""

import random
from dataclasses import dataclass

import httpx

from serve.client.service_error import error_of

# Worth another try: overload, a restart, or a proxy's trouble. Every request of this API may be repeated:
# writes are upserts and deletes.
_PASSING = {429, 502, 503, 504}


@dataclass(frozen=True)
class Retries:
    """A retry policy.

    Attributes:
        attempts: Tries in all; 1 never repeats.
        first_seconds: Pause before the second try; it doubles from try to try.
        longest_seconds: Longest pause; a Retry-After beyond it ends the tries.
    """

    attempts: int = 5
    first_seconds: float = 0.1
    longest_seconds: float = 10.0

    def pause(self, attempt: int, response: httpx.Response | None) -> float | None:
        """Seconds to wait after try number ``attempt`` (from 1), or None to give up.

        Args:
            attempt: The try that has just failed.
            response: Its response; None when the connection failed.
        """
        if attempt >= self.attempts or (response is not None and response.status_code not in _PASSING):
            return None
        # Full jitter: clients that were refused together do not come back together.
        pause = min(self.longest_seconds, self.first_seconds * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)  # noqa: S311
        asked = _retry_after(response)
        if asked is None:
            return pause
        return None if asked > self.longest_seconds else float(max(pause, asked))

    def before_next(self, attempt: int, error: httpx.HTTPError) -> float:
        """Seconds to wait after try number ``attempt`` (from 1), which ended with ``error``.

        Raises:
            ServiceError: There is no further try.
        """
        pause = self.pause(attempt, error.response if isinstance(error, httpx.HTTPStatusError) else None)
        if pause is None:
            raise error_of(error) from error
        return pause


def _retry_after(response: httpx.Response | None) -> float | None:
    """Seconds that the service asks to wait."""
    text: str = "" if response is None else response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
