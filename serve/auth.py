"""API keys for reading and for writing, compared in constant time."""

import hmac
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import Request

from models.errors import InputError
from serve.observability import log
from serve.problems import Problem
from serve.settings import Settings

# How long a key that was removed from the file may still be accepted.
_FRESH_SECONDS = 1.0


class Keys:
    """Checks the keys of requests.

    Without keys every request is allowed (on loopback only, see :meth:`Settings.check_exposure`). A write key
    also reads; with read keys alone, the service is read-only. Several keys of a kind may be valid at once,
    for an exchange without a gap; the file of keys is read again when it has changed.

    Raises:
        InputError: The file of keys cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looked_at = 0.0
        self._changed_at = 0
        self._read, self._write = settings.keys()

    @property
    def any(self) -> bool:
        """Whether at least one key is set."""
        return bool(self._read or self._write)

    @property
    def protect_reading(self) -> bool:
        """Whether a read key is set; a write key alone leaves reading open."""
        return bool(self._read)

    def _refresh(self) -> None:
        file = self._settings.keys_file
        if file is None or time.monotonic() - self._looked_at < _FRESH_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            changed_at = file.stat().st_mtime_ns
            if changed_at != self._changed_at:
                self._read, self._write = self._settings.keys()
                self._changed_at = changed_at
        except (OSError, InputError) as error:  # the old keys stay valid: a typo must not open the service
            log.error("the keys were not read again: %s", error)

    def check(self, headers: Headers, *, write: bool) -> None:
        """Let the request pass; 401 without a key where one is needed, 403 with one that does not suffice."""
        self._refresh()
        if not self.any:
            return
        presented = presented_key(headers)
        if write:
            allowed = _any_same(presented, self._write) if self._write else not self._read
        else:
            allowed = not self._read or _any_same(presented, [*self._read, *self._write])
        if allowed:
            return
        kind = "write" if write else "read"
        if write and not self._write:
            raise Problem(403, "read-only", "this service is read-only: it runs without a write key")
        if presented is None:
            raise Problem(
                401,
                "key-missing",
                f"this request needs the {kind} key; send it as 'Authorization: Bearer KEY'",
                {"WWW-Authenticate": "Bearer"},
            )
        raise Problem(403, "key-wrong", f"the key sent does not allow this request; use the {kind} key")


def _any_same(presented: bytes | None, keys: list[bytes]) -> bool:
    """Whether the key is one of them. All are compared, so that the time reveals nothing."""
    same = [hmac.compare_digest(presented or b"", key) for key in keys]
    return any(same) and bool(presented)


def presented_key(headers: Mapping[str, str]) -> bytes | None:
    """The key in ``Authorization: Bearer`` or ``X-API-Key``, if any."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    token = value.strip(" \t") if scheme.lower() == "bearer" else ""
    key = token or headers.get("x-api-key", "")
    return key.encode("latin-1") or None  # as it was sent: Starlette reads headers as Latin-1


def read_key(request: Request) -> None:
    """A route's dependency: the request must present a key that reads."""
    keys: Keys = request.app.state.service.keys
    if keys.any:
        keys.check(request.headers, write=False)


def write_key(request: Request) -> None:
    """A route's dependency: the request must present a key that writes."""
    request.app.state.service.keys.check(request.headers, write=True)
