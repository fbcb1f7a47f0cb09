"""Python client of the service: :class:`Client` and, for asyncio, :class:`AsyncClient`."""

from serve.client.client import AsyncClient, Client
from serve.client.service_error import ServiceError

__all__ = ["AsyncClient", "Client", "ServiceError"]
