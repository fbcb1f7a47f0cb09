"""API keys: one for reading, one for writing, compared in constant time."""

import hmac
from collections.abc import Awaitable, Callable, Mapping

from starlette.datastructures import Headers
from starlette.requests import Request

from serve.problems import Problem
from serve.settings import Settings


class Keys:
    """Who may do what.

    Without keys everything is open (loopback only, see :meth:`Settings.check_exposure`). A write key reads as
    well.

    Args:
        read: Key for reading; None leaves reading open.
        write: Key for changing; None leaves changing open unless a read key is set, which then closes it for
            good.
    """

    def __init__(self, read: str | None, write: str | None) -> None:
        self._read = read.encode() if read else None
        self._write = write.encode() if write else None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Keys":
        """The keys that the settings name."""
        return cls(
            settings.read_key.get_secret_value() if settings.read_key else None,
            settings.write_key.get_secret_value() if settings.write_key else None,
        )

    @property
    def any(self) -> bool:
        """Whether at least one key is set."""
        return self._read is not None or self._write is not None

    def may_read(self, presented: bytes | None) -> bool:
        """Whether ``presented`` opens reading."""
        if self._read is None:
            return True
        # Both comparisons always run, so that the time tells nothing of which key came close.
        return _same(presented, self._read) | _same(presented, self._write)

    def may_write(self, presented: bytes | None) -> bool:
        """Whether ``presented`` opens changing."""
        if self._write is None:
            return self._read is None
        return _same(presented, self._write)

    def check(self, headers: Headers, *, write: bool) -> None:
        """Let the request pass or raise.

        Raises:
            Problem: 401 without a key where one is needed, 403 with one that does not suffice.
        """
        presented = presented_key(headers)
        if self.may_write(presented) if write else self.may_read(presented):
            return
        kind = "write" if write else "read"
        if write and self._write is None:
            raise Problem(403, "read-only", "this service is read-only: it runs without a write key")
        if presented is None:
            raise Problem(
                401,
                "key-missing",
                f"this request needs the {kind} key; send it as 'Authorization: Bearer KEY'",
                {"WWW-Authenticate": "Bearer"},
            )
        raise Problem(403, "key-wrong", f"the key sent does not open this request; use the {kind} key")


def _same(presented: bytes | None, key: bytes | None) -> bool:
    return hmac.compare_digest(presented or b"", key or b"") and bool(presented) and bool(key)


def presented_key(headers: Mapping[str, str]) -> bytes | None:
    """The key in ``Authorization: Bearer`` or ``X-API-Key``, if any."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip().encode("utf-8", "replace")
    other = headers.get("x-api-key", "").strip()
    return other.encode("utf-8", "replace") if other else None


def requires(*, write: bool) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency that checks the key before the body is read."""

    async def check(request: Request) -> None:
        keys: Keys = request.app.state.service.keys
        keys.check(request.headers, write=write)

    return check
