"""Protects a service against web pages that its user visits.

A page on any site can send forms to ``http://127.0.0.1:8000``, and with DNS rebinding read the answers. So
without a read key, the Host header must name this machine, and requests that browsers mark as coming from
another site may not change anything. Other sites' pages do not know the read key.
"""

from collections.abc import Mapping

from serve.problems import Problem
from serve.settings import Settings, host_name

_SAFE = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "testserver"}


class Origins:
    """Refuses foreign hosts and cross-site changes.

    Args:
        settings: For the allowed hosts and origins.
        reading_needs_key: Whether a read key protects the data already; any host name will do then.
    """

    def __init__(self, settings: Settings, *, reading_needs_key: bool) -> None:
        self._origins = set(settings.cors_origins)
        self._hosts = {*_LOOPBACK, settings.host, *settings.allowed_hosts}
        self._any_host = reading_needs_key or settings.public_reads or not settings.is_loopback()

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Check a request.

        Args:
            method: HTTP method.
            headers: Values by name in lower case.

        Raises:
            Problem: 421, a foreign host; 403, a change by another site's page.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._any_host and host_name(host) not in self._hosts:
            raise Problem(
                421,
                "host",
                f"host {host or 'missing'}: without a read key, this service answers to this machine's "
                "names; set KINDRED_READ_KEY, KINDRED_ALLOWED_HOSTS or public_reads",
            )
        if method in _SAFE or b"origin" not in headers:
            return
        # Browsers set it themselves, and it holds behind a proxy that gives the request another Host.
        if headers.get(b"sec-fetch-site") == b"same-origin":
            return
        origin = headers[b"origin"].decode("latin-1")
        place = origin.partition("://")[2]
        if origin in self._origins or place == host or host_name(place) in self._hosts - _LOOPBACK:
            return
        raise Problem(
            403,
            "cross-site",
            f"origin {origin}: another site's page may not do this; see cors_origins and allowed_hosts",
        )
