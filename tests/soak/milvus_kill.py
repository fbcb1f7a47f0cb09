"""Kills a Milvus server in the middle of writes and checks the store after each restart.

    PATH="$PWD/.tools/milvus/bin:$PATH" PYTHONPATH=. python tests/soak/milvus_kill.py --kills 5

Three threads upsert and delete items of their own at random. At a random moment the server gets SIGKILL;
each thread goes on until a write of it fails. Every item must then be as it was acknowledged to be, but for
those of the writes that failed, which may be as before or as after; and a search must find each item under
its own vector. Items that a failed write took away without putting the new ones in their place are counted
apart: Milvus replaces an item by two messages.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from serve.store.milvus.store import MilvusStore
from serve.store.types import Item, StoreError
from tests.milvus_server import MilvusServer, milvus_server

DIM = 16
THREADS = 3
IDS = 60

Model = dict[str, str]
"""Label by id; a label is never used twice and decides the vector."""


def vector_of(label: str) -> np.ndarray:
    return np.random.default_rng(list(label.encode())).standard_normal(DIM).astype(np.float32)


class Writer(threading.Thread):
    """Writes items of its own until a write fails.

    Attributes:
        model: What was acknowledged.
        under_way: The items of the write that failed, with their new labels; None where they were to go.
        writes: How many were acknowledged.
        failure: What the store said of the failed one.
    """

    def __init__(self, store: MilvusStore, number: int, run: int, model: Model) -> None:
        super().__init__(daemon=True)
        self.model = model
        self.under_way: dict[str, str | None] = {}
        self.writes = 0
        self.failure = ""
        self._store, self._number, self._run = store, number, run

    def run(self) -> None:
        rng = random.Random(f"{self._run} {self._number}")
        while True:
            ids = {f"{self._number}-{rng.randrange(IDS)}" for _ in range(rng.choice([1, 1, 3, 20]))}
            gone = rng.random() < 0.35
            self.under_way = {
                id_: None if gone else f"{self._run}/{self._number}/{self.writes}/{id_}"
                for id_ in sorted(ids)
            }
            try:
                if gone:
                    self._store.delete(sorted(ids))
                else:
                    self._store.upsert(
                        [Item(id_, vector_of(str(label)), label) for id_, label in self.under_way.items()]
                    )
            except StoreError as error:
                self.failure = str(error)
                return
            for id_, label in self.under_way.items():
                if label is None:
                    self.model.pop(id_, None)
                else:
                    self.model[id_] = label
            self.writes += 1


def check(store: MilvusStore, writers: list[Writer]) -> tuple[Model, int]:
    """What the store has now, if the writers allow it; and how many replacements were cut in half."""
    found = {str(item.id): str(item.label) for item in store.scan()}
    assert len(found) == store.count(), "an id is there twice"
    half = 0
    for writer in writers:
        for id_ in writer.model.keys() | writer.under_way.keys():
            before, now = writer.model.get(id_), found.get(id_)
            if id_ not in writer.under_way:
                assert now == before, f"{id_} was acknowledged as {before} and is {now}"
            elif now is None and before is not None and writer.under_way[id_] is not None:
                half += 1
            else:
                assert now in (before, writer.under_way[id_]), f"{id_} is {now}, which it never was"
    known = {id_ for writer in writers for id_ in writer.model.keys() | writer.under_way.keys()}
    assert found.keys() <= known, f"{found.keys() - known} came back"
    for id_, label in found.items():
        hit = store.search(vector_of(label), 1).hits[0][0]
        assert (hit.id, hit.label) == (id_, label), f"a search for {id_} finds {hit}"
    return found, half


def killed_while_writing(
    server: MilvusServer, store: MilvusStore, run: int, model: Model, longest: float
) -> list[Writer]:
    """The writers, after the server was killed under them."""
    writers = [
        Writer(store, number, run, {id_: label for id_, label in model.items() if id_[0] == str(number)})
        for number in range(THREADS)
    ]
    for writer in writers:
        writer.start()
    time.sleep(random.Random(run).uniform(1, longest))
    assert all(writer.is_alive() for writer in writers), [writer.failure for writer in writers]
    server.kill()
    for writer in writers:
        writer.join()
        assert writer.failure.count("\n") == 0, writer.failure
    return writers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--longest", type=float, default=10.0, help="seconds of writing at most")
    options = parser.parse_args()
    model: Model = {}
    writes = halves = 0
    with tempfile.TemporaryDirectory() as folder, milvus_server(Path(folder)) as server:
        for run in range(options.kills):
            with MilvusStore.open(server.address, dim=DIM, timeout=10) as store:
                writers = killed_while_writing(server, store, run, model, options.longest)
            begun = time.monotonic()
            server.start()
            with MilvusStore.open(server.address, timeout=60) as store:
                ready = time.monotonic() - begun
                model, half = check(store, writers)
            done = sum(writer.writes for writer in writers)
            writes, halves = writes + done, halves + half
            print(
                f"kill {run + 1}: {done} acknowledged writes, {len(model)} items, {half} replaced by halves, "
                f"back after {ready:.0f} s; {writers[0].failure[:100]}",
                flush=True,
            )
    print(
        f"{options.kills} kills, {writes} acknowledged writes: none lost; {halves} items replaced by halves"
    )


if __name__ == "__main__":
    main()
