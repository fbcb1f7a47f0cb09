"""Readers and writers at once: no stale read after a write, and nothing missing while it is replaced."""

import threading

import numpy as np

from serve.store.types import Item, Store


def test_reads_see_every_acknowledged_write(store: Store, vectors: np.ndarray) -> None:
    store.upsert([Item("lighthouse", vectors[0], "always")])
    wrong: list[str] = []
    done = threading.Event()

    def write(writer: int) -> None:
        for round_ in range(4):
            id_ = f"{writer} {round_}"
            store.upsert([Item(id_, vectors[1 + 4 * writer + round_], id_)])
            hits = store.search(vectors[1 + 4 * writer + round_], 1, exact=True).hits[0]
            if [hit.id for hit in hits] != [id_]:
                wrong.append(f"{id_} is not found after it was stored: {hits}")
            if round_ % 2 and (store.delete([id_]) != 1 or store.get([id_]) != [None]):
                wrong.append(f"{id_} is there after it was deleted")

    def replace() -> None:
        for round_ in range(8):
            store.upsert([Item("lighthouse", vectors[0], f"always {round_}")])

    def look() -> None:
        while not done.is_set():
            hits = store.search(vectors[0], 1).hits[0]
            if [hit.id for hit in hits] != ["lighthouse"]:
                wrong.append(f"the lighthouse is out: {hits}")

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)] + [
        threading.Thread(target=replace)
    ]
    reader = threading.Thread(target=look)
    for thread in [*writers, reader]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not wrong, wrong[:3]
    assert store.count() == 1 + 3 * 2
