"""The client's error."""

import httpx
import msgspec

from serve.problems import ProblemDocument


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
        address, status = f"{response.url.scheme}://{response.url.netloc.decode()}", response.status_code
        if "location" in response.headers:
            text = f"it redirects to {response.headers['location']}; give the address of the service itself"
        else:
            text = "this is no answer of the service; check the address, and a proxy on the way"
        return ServiceError(status, "", f"{address}: status {status}: {text}")
    return ServiceError(problem.status, problem.type.rpartition(":")[2], problem.detail, problem.request_id)


def error_of(error: httpx.HTTPError) -> ServiceError:
    """The error that a failed exchange means."""
    if isinstance(error, httpx.HTTPStatusError):
        return refusal_of(error.response)
    url = error.request.url
    reason = str(error) or type(error).__name__
    return ServiceError(0, "unreachable", f"{url.scheme}://{url.netloc.decode()}: no answer ({reason})")
