"""A new model takes over on a service under load: no request fails, no answer mixes the two."""

import threading

import httpx
import numpy as np
import pytest
import torch

from serve.client import Retries, ServiceError
from serve.embedding import jpeg_thumbnail
from serve.schemas import NewItem
from serve.store.catalogue import Catalogue

ONCE = Retries(attempts=1)
IMAGES = 40


class Visitors:
    """People who search, compare and look on while the model changes; every failure is kept."""

    def __init__(self, running, images):
        self.running, self.images = running, images
        self.failures, self.catalogue = [], set()
        self.answers = 0
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.visit, args=(number,)) for number in range(4)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def visit(self, number):
        rng = np.random.default_rng(number)
        with self.running.client(retries=ONCE) as client:
            while not self.over.is_set():
                wanted = int(rng.integers(IMAGES))
                try:
                    hit = client.search_image(self.images[wanted], k=1).hits[0]
                    assert hit.id == wanted
                    assert hit.similarity == pytest.approx(1, abs=1e-4)
                    batch = client.search_images([self.images[wanted], self.images[0]], k=1)
                    assert [result.hits[0].id for result in batch.results] == [wanted, 0]
                    assert client.search_by_id(wanted, k=1).hits[0].id != wanted
                    assert client.verify(self.images[wanted], self.images[wanted]).same
                    assert httpx.get(f"{self.running.address}/readyz").status_code == 200
                except (ServiceError, AssertionError, httpx.HTTPError) as error:
                    self.failures.append(repr(error))
                self.answers += 1

    def wait(self, more):
        """Until ``more`` further rounds were made."""
        until = self.answers + more
        while self.answers < until and not self.failures:
            threading.Event().wait(0.01)


@pytest.fixture
def upgrading(start, tmp_path, picture, make_model):
    """A service whose alias ``current`` means the old model's collection, the new model, and the images."""
    old, new = make_model(0), make_model(1, dim=24)
    old.save(tmp_path / "bundle")
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("first", old.dim, old.fingerprint)
        catalogue.set_alias("current", "first")
    # Nobody is refused, whatever else the machine does; and the network runs as it is.
    running = start(collection="current", latency_budget_ms=60_000, backend="auto")
    images = [picture(seed) for seed in range(IMAGES)]
    with running.client() as client:
        for number, image in enumerate(images):
            client.upsert(image, number, label=f"l{number % 4}", metadata={"year": 1900 + number})
    return running, new, images


def embedded(model, images):
    """What an operator's own script does with the new model, image by image."""
    for number, image in enumerate(images):
        thumbnail = jpeg_thumbnail(model.preprocess.open(image), 160)
        (vector,) = model.embed([image]).tolist()
        yield NewItem(id=number, vector=vector, label=f"l{number % 4}", thumbnail=thumbnail)


def test_no_request_fails_while_the_model_changes(upgrading, tmp_path):
    running, new, images = upgrading
    with running.client() as client, Visitors(running, images) as visitors:
        visitors.wait(8)
        client.create_collection("second", dim=new.dim, fingerprint=new.fingerprint)
        stored = client.import_items(embedded(new, images), collection="second", fingerprint=new.fingerprint)
        assert stored == IMAGES
        new.save(tmp_path / "bundle")
        visitors.wait(8)
        assert client.reload("current", "second").fingerprint == new.fingerprint
        client.delete_collection("first")
        visitors.wait(8)
    assert visitors.failures == []
    with running.client() as client:
        assert client.stats().dim == 24
        assert [one.name for one in client.collections().collections] == ["second"]
        assert client.thumbnail(3).startswith(b"\xff\xd8")


def test_a_broken_model_never_serves(upgrading, tmp_path):
    running, new, images = upgrading
    with torch.no_grad():
        next(new.network.parameters()).fill_(float("nan"))
    new.fingerprint = ""
    new.__post_init__()
    new.save(tmp_path / "bundle")
    with running.client() as client:
        old = client.model().fingerprint
        client.create_collection("second", dim=new.dim, fingerprint=new.fingerprint)
        with pytest.raises(ServiceError, match="not finite"):
            client.reload("current", "second")
        with pytest.raises(ServiceError, match="go together"):
            client.reload("current")
        assert client.model().fingerprint == old
        assert client.collections().aliases == {"current": "first"}
        assert client.search_image(images[5], k=1).hits[0].id == 5
