"""How calls reach the service: connections, repetition, errors."""

import asyncio
import time
from typing import Self, TypeVar

import httpx

from serve.client import requests
from serve.client.errors import ServiceError, error_of
from serve.client.requests import Call
from serve.client.retries import Retries

A = TypeVar("A")


class Transport:
    """Sends calls and waits for them; see :class:`serve.client.Client`."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  (frozen)
    ) -> None:
        self._http = httpx.Client(base_url=base_url, headers=_headers(key), timeout=timeout)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, call: Call[A]) -> A:
        attempt = 1
        while True:
            response = None
            try:
                response = self._http.request(**call.sending())
                if response.status_code < 400:
                    return requests.answer_of(call, response.content)
                failure = error_of(response)
            except httpx.TransportError as error:
                failure = _unreachable(self._http.base_url, error)
            pause = self._retries.pause(attempt, response)
            if pause is None:
                raise failure
            time.sleep(pause)
            attempt += 1


class AsyncTransport:
    """Sends calls from asyncio; the twin of :class:`Transport`."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  (frozen)
    ) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, headers=_headers(key), timeout=timeout)
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: Call[A]) -> A:
        attempt = 1
        while True:
            response = None
            try:
                response = await self._http.request(**call.sending())
                if response.status_code < 400:
                    return requests.answer_of(call, response.content)
                failure = error_of(response)
            except httpx.TransportError as error:
                failure = _unreachable(self._http.base_url, error)
            pause = self._retries.pause(attempt, response)
            if pause is None:
                raise failure
            await asyncio.sleep(pause)
            attempt += 1


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _unreachable(base_url: httpx.URL, error: httpx.TransportError) -> ServiceError:
    reason = str(error) or type(error).__name__
    return ServiceError(0, "unreachable", f"{base_url}: no answer ({reason})")
