"""Kills a writing process at random moments and checks the store after each death.

    python tests/soak/store_kill.py --kills 200

Three threads of the writer upsert and delete items of their own at random, while a fourth flushes
and background merges run. Each notes what it is about to do, and that it was acknowledged, in a journal file.
After the kill the store must hold every acknowledged write; of the one operation that a thread may have had
under way, all or nothing; no item that was deleted; and a search must equal a brute-force one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item

DIM = 16
THREADS = 3
IDS = 60
TUNING = Tuning(memtable_rows=100, build_threads=1, approximate_rows=150)

Model = dict[str, str]
"""Label by id; a label is never used twice and decides the vector."""


def vector_of(label: str) -> np.ndarray:
    return np.random.default_rng(list(label.encode())).standard_normal(DIM).astype(np.float32)


def applied(model: Model, operation: dict[str, Any]) -> Model:
    """The model after an operation: {"put": {id: label}, "drop": [id, ...]}."""
    kept = {id_: label for id_, label in model.items() if id_ not in operation["drop"]}
    return kept | operation["put"]


def write(folder: Path, journal: Path, run: int, seed: int, index: str, ready: Connection) -> None:
    """The process that will be killed; says over `ready` when it begins."""
    store = FaissStore.open(folder, dim=DIM, index=index, tuning=TUNING)
    lock = threading.Lock()
    lines = journal.open("a")

    def note(entry: dict[str, Any]) -> None:
        with lock:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

    def work(thread: int) -> None:
        rng = random.Random(f"{seed} {run} {thread}")
        number = 0
        while True:
            number += 1
            ids = [f"{thread}-{rng.randrange(IDS)}" for _ in range(rng.choice([1, 1, 3, 20]))]
            put = {id_: f"{run}/{thread}/{number}/{id_}" for id_ in ids}
            if rng.random() < 0.35:
                note({"thread": thread, "number": number, "put": {}, "drop": ids})
                store.delete(ids)
            else:
                note({"thread": thread, "number": number, "put": put, "drop": []})
                store.upsert([Item(id_, vector_of(label), label) for id_, label in put.items()])
            note({"thread": thread, "number": number})

    def flushes() -> None:
        rng = random.Random(f"{seed} {run} flushes")
        while True:
            time.sleep(rng.random() * 0.05)
            store.flush()

    for target, *args in [*((work, thread) for thread in range(THREADS)), (flushes,)]:
        threading.Thread(target=target, args=args, daemon=True).start()
    ready.send("ready")
    threading.Event().wait()


def read_journal(journal: Path) -> tuple[dict[int, list[dict[str, Any]]], int]:
    """Operations of each thread in order, each with "done", and how many were acknowledged."""
    threads: dict[int, list[dict[str, Any]]] = {thread: [] for thread in range(THREADS)}
    done = 0
    for line in journal.read_text().splitlines():
        entry = json.loads(line) if line.endswith("}") else None
        if entry is None:  # the last line of a killed writer may be half
            continue
        if "put" in entry:
            threads[entry["thread"]].append({**entry, "done": False})
        else:
            threads[entry["thread"]][-1]["done"] = True
            done += 1
    return threads, done


def check(folder: Path, before: Model, journal: Path, seed: int) -> tuple[Model, int]:
    """The model as the store has it now, if that is one that the journal allows; and acknowledged writes."""
    threads, done = read_journal(journal)
    with FaissStore.open(folder, tuning=TUNING) as store:
        items = list(store.scan(with_vectors=True))
        found = {str(item.id): item.label for item in items}
        assert len(found) == len(items) == store.count(), "an id is there twice"
        for thread, operations in threads.items():
            mine = {id_: label for id_, label in before.items() if id_.startswith(f"{thread}-")}
            for operation in operations[:-1]:
                assert operation["done"], "only the last operation may be under way"
                mine = applied(mine, operation)
            allowed = [applied(mine, operations[-1])] if operations else [mine]
            if operations and not operations[-1]["done"]:
                allowed.append(mine)
            now = {id_: label for id_, label in found.items() if id_.startswith(f"{thread}-")}
            assert now in allowed, f"thread {thread} lost or regained something: {now} not in {allowed}"
        check_search(store, items, seed)
    return found, done


def check_search(store: FaissStore, items: list[Item], seed: int) -> None:
    queries = np.random.default_rng(seed).standard_normal((5, DIM)).astype(np.float32)
    hits = store.search(queries, len(items) + 10, exact=True).hits
    if not items:
        assert hits == [[]] * 5
        return
    rows = np.stack([vector_of(item.label) for item in items]).astype(np.float64)
    stored = np.stack([item.vector for item in items])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(stored - rows).max() < 1e-6, "a vector is not the one of its label"
    similarities = queries @ rows.T / np.linalg.norm(queries, axis=1, keepdims=True)
    for query, row in enumerate(similarities):
        by_id = dict(zip((item.id for item in items), row, strict=True))
        assert {hit.id for hit in hits[query]} == set(by_id), "search and truth disagree on what is there"
        got = [hit.similarity for hit in hits[query]]
        assert np.abs(np.array(got) - [by_id[hit.id] for hit in hits[query]]).max() < 1e-5
        assert got == sorted(got, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", default="HNSW8")
    parser.add_argument("--longest", type=float, default=1.0, help="seconds that a writer lives at most")
    options = parser.parse_args()
    # Writers are forked from a process that has imported everything and done nothing: imports would take
    # longer than most of them live.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["serve.store.collection"])
    rng = random.Random(options.seed)
    writes = 0
    with tempfile.TemporaryDirectory(prefix="kindred-store-") as name:
        folder, journal, model = Path(name) / "store", Path(name) / "journal", {}
        for run in range(options.kills):
            journal.write_text("")
            ready, tell = processes.Pipe(duplex=False)
            given = (folder, journal, run, options.seed, options.index, tell)
            writer = processes.Process(target=write, args=given)
            writer.start()
            tell.close()
            assert ready.recv() == "ready", "the writer died by itself"
            time.sleep(rng.random() * options.longest)
            assert writer.is_alive(), "the writer died by itself"
            writer.kill()
            writer.join()
            model, done = check(folder, model, journal, run)
            writes += done
            print(f"kill {run + 1}: {done} acknowledged writes, {len(model)} items", flush=True)
    print(
        f"{options.kills} kills, {writes} acknowledged writes: none lost, none undone, no deleted item back"
    )


if __name__ == "__main__":
    main()
