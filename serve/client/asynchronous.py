"""The asynchronous client, put together."""

from serve.client.administration import AsyncAdministration
from serve.client.items import AsyncItems
from serve.client.searches import AsyncSearches


class AsyncClient(AsyncSearches, AsyncItems, AsyncAdministration):
    """Talks to a service from asyncio; the twin of :class:`serve.client.Client`, with the same arguments."""
