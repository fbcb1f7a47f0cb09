"""The HTTP API: one router a resource, put together in :mod:`serve.api.app`."""
