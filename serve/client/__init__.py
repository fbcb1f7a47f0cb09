"""Python client of the service: :class:`Client` and, for asyncio, :class:`AsyncClient`."""

from serve.client.asynchronous import AsyncClient
from serve.client.errors import ServiceError
from serve.client.synchronous import Client

__all__ = ["AsyncClient", "Client", "ServiceError"]
