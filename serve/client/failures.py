"""What a failed exchange means: the client's error, and whether to try again."""

import random
from dataclasses import dataclass

import httpx
import msgspec

from serve.problems import ProblemDocument

# Worth another try: overload, a restart, or a proxy's trouble. Every request of this API may be repeated:
# writes are upserts and deletes.
_PASSING = {429, 502, 503, 504}


class ServiceError(Exception):
    """The service refused a request, or did not answer.

    Attributes:
        status: HTTP status; 0 when no answer came.
        code: The problem's short name, such as "image" or "overloaded"; empty when none was given.
        detail: One line naming the thing and the remedy.
        request_id: Under which the service's log knows the request.
    """

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id


def refusal_of(response: httpx.Response) -> ServiceError:
    """The error that an answer other than a success means."""
    try:
        problem = msgspec.json.decode(response.content, type=ProblemDocument)
    except msgspec.DecodeError:
        if "location" in response.headers:
            text = f"it redirects to {response.headers['location']}; give the address of the service itself"
        else:
            text = "this is no answer of the service; check the address, and a proxy on the way"
        status = response.status_code
        return ServiceError(status, "", f"{_origin(response.url)}: status {status}: {text}")
    return ServiceError(problem.status, problem.type.rpartition(":")[2], problem.detail, problem.request_id)


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
        """Seconds to wait after failed try number ``attempt`` (from 1), or None to give up."""
        if attempt >= self.attempts or (response is not None and response.status_code not in _PASSING):
            return None
        # Full jitter: clients that were refused together do not come back together.
        pause = min(self.longest_seconds, self.first_seconds * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)  # noqa: S311
        asked = "" if response is None else response.headers.get("retry-after", "")
        if not asked.isdecimal():
            return pause
        return None if float(asked) > self.longest_seconds else max(pause, float(asked))

    def before_next(self, attempt: int, error: httpx.HTTPError) -> float:
        """Seconds to wait after try number ``attempt`` (from 1), which ended with ``error``.

        Raises:
            ServiceError: There is no further try.
        """
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        pause = self.pause(attempt, response)
        if pause is not None:
            return pause
        if response is not None:
            raise refusal_of(response) from error
        reason = str(error) or type(error).__name__
        raise ServiceError(0, "unreachable", f"{_origin(error.request.url)}: no answer ({reason})") from error


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"
