"""The synchronous client, put together."""

from serve.client.administration import Administration
from serve.client.items import Items
from serve.client.searches import Searches


class Client(Searches, Items, Administration):
    """Talks to a service.

    Requests that meet overload, a restart or a broken connection are repeated after a growing pause, which is
    safe: every write of the API has the same effect once or twice.

    Args:
        base_url: Address of the service, such as ``http://127.0.0.1:8000``.
        key: Read or write key, when the service wants one.
        timeout: Seconds until a request counts as failed.
        retries: When to try again.

    Every method raises ServiceError when the service refuses or does not answer.
    """
