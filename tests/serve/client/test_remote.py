"""A collection of a running service as the destination of an import."""

import numpy as np
import pytest

from serve.client import ServiceError
from serve.client.remote import RemoteCollection
from serve.store.types import Item


def test_it_is_filled_listed_and_thinned_out(start, bundle):
    names = ["star/0.jpg", "star/é 1.jpg", "ring/2.jpg"]
    vectors = np.eye(bundle.dim, dtype=np.float32)
    with start().client() as client:
        remote = RemoteCollection(client, "default", bundle.dim, bundle.fingerprint)
        items = [Item(name, vector, name[:4]) for name, vector in zip(names, vectors, strict=False)]
        assert remote.upsert(items, fingerprint=bundle.fingerprint) == 3
        assert sorted(item.id for item in remote.scan()) == sorted(names)
        assert remote.delete([names[1], "none"]) == 1
        assert [item is None for item in remote.get(names)] == [False, True, False]
        assert remote.count() == 2


def test_another_models_collection_is_refused(start, bundle):
    with start().client() as client:
        RemoteCollection(client, "new", bundle.dim, bundle.fingerprint)
        with pytest.raises(ServiceError, match="name a new collection"):
            RemoteCollection(client, "new", bundle.dim, "another")
