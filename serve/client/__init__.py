"""Python client of the service: :class:`Client` and, for asyncio, :class:`AsyncClient`."""

from serve.client.client import AsyncClient, Client
from serve.client.failures import Retries, ServiceError

__all__ = ["AsyncClient", "Client", "Retries", "ServiceError"]
