"""Random sequences of operations, held against a dictionary after each of them.

KINDRED_MACHINE_EXAMPLES in the environment sets how many sequences are tried; `make soak` tries many.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serve.store.database import Tuning
from serve.store.milvus.engine import Engine
from serve.store.types import Item, Store

from .conftest import FaissHome, Home, MilvusHome

DIM = 8
EXAMPLES = int(os.environ.get("KINDRED_MACHINE_EXAMPLES", "20"))
HOMES: dict[str, dict[str, Any]] = {
    "exact": {"tuning": Tuning(memtable_rows=5, build_threads=1, transaction_rows=7, settle_seconds=0.01)},
    "hnsw": {
        "index": "HNSW8",
        "tuning": Tuning(memtable_rows=5, build_threads=1, approximate_rows=10, settle_seconds=0.01),
    },
}

IDS = st.integers(0, 15)
LABELS = st.sampled_from([None, "cat", "dog"])
WHERE = st.sampled_from(
    [
        {"label": "cat"},
        {"label": None},
        {"metadata.price": {"gte": 2}},
        {"not": {"metadata.price": 1}},
        {"or": [{"label": "dog"}, {"metadata.tags": {"contains": "x"}}]},
    ]
)
METADATA = st.fixed_dictionaries({}, optional={"price": st.integers(0, 3), "tags": st.just(["x"])})


def passes(item: Item, where: dict[str, Any]) -> bool:
    """The filters above, in plain Python."""
    price, tags = item.metadata.get("price"), item.metadata.get("tags", [])
    return {
        "{'label': 'cat'}": item.label == "cat",
        "{'label': None}": item.label is None,
        "{'metadata.price': {'gte': 2}}": price is not None and price >= 2,
        "{'not': {'metadata.price': 1}}": price != 1,
    }.get(str(where), item.label == "dog" or "x" in tags)


class Machine(RuleBasedStateMachine):
    """Invariants of every store; `make_home` says where the one under test lies."""

    home: Home

    def make_home(self) -> Home:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.home = self.make_home()
        self.store: Store = self.home.open(dim=DIM)
        self.model: dict[int, Item] = {}
        self.sequence = self.writes = 0

    def written(self) -> None:
        sequence = self.store.stats().lsn
        assert sequence > self.sequence
        self.sequence = sequence

    @rule(ids=st.lists(IDS, min_size=1, max_size=12), label=LABELS, metadata=METADATA)
    def upsert(self, ids: list[int], label: str | None, metadata: dict[str, Any]) -> None:
        self.writes += 1
        rng = np.random.default_rng(self.writes)
        items = [Item(id_, rng.standard_normal(DIM).astype(np.float32), label, metadata) for id_ in ids]
        self.store.upsert(items)
        self.model |= {item.id: item for item in items}
        self.written()

    @rule(id_=IDS, label=LABELS, price=st.integers(0, 3) | st.none())
    def update(self, id_: int, label: str | None, price: int | None) -> None:
        if id_ not in self.model:
            return
        self.store.update(id_, {"label": label, "metadata": {"price": price}})
        old = self.model[id_]
        metadata = {**old.metadata, "price": price}
        if price is None:
            del metadata["price"]
        self.model[id_] = Item(id_, old.vector, label, metadata)
        self.written()

    @rule(ids=st.lists(IDS, max_size=5))
    def delete(self, ids: list[int]) -> None:
        known = set(ids) & self.model.keys()
        assert self.store.delete(ids) == len(known)
        for id_ in known:
            del self.model[id_]

    @rule(where=WHERE)
    def delete_by_filter(self, where: dict[str, Any]) -> None:
        gone = [id_ for id_, item in self.model.items() if passes(item, where)]
        assert self.store.delete(where=where) == len(gone)
        for id_ in gone:
            del self.model[id_]

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(where=st.none() | WHERE, k=st.integers(1, 20), exact=st.booleans())
    def search(self, where: dict[str, Any] | None, k: int, exact: bool) -> None:
        query = np.random.default_rng(k).standard_normal(DIM).astype(np.float32)
        passing = [item for item in self.model.values() if where is None or passes(item, where)]
        hits = self.store.search(query, k, where=where, exact=exact).hits[0]
        ids = [hit.id for hit in hits]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= {item.id for item in passing}
        for hit in hits:
            assert (hit.label, hit.metadata) == (self.model[hit.id].label, self.model[hit.id].metadata)
        similarity = {
            item.id: float(item.vector @ query / np.linalg.norm(item.vector) / np.linalg.norm(query))
            for item in passing
        }
        assert all(abs(hit.similarity - similarity[hit.id]) < 1e-4 for hit in hits)
        if exact:
            best = sorted(similarity.values(), reverse=True)[:k]
            np.testing.assert_allclose([hit.similarity for hit in hits], best, atol=1e-4)

    @invariant()
    def the_store_holds_the_model(self) -> None:
        assert self.store.count() == len(self.model)
        found = list(self.store.scan())
        assert sorted(item.id for item in found) == sorted(self.model)
        for item in found:
            assert (item.label, item.metadata) == (self.model[item.id].label, self.model[item.id].metadata)

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.home.close()


def run(machine: type[Machine], examples: int, steps: int) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=slow
        ),
    )


def test_the_embedded_store(tmp_path: Path) -> None:
    for options in HOMES.values():

        class Embedded(Machine):
            def make_home(self) -> Home:
                return FaissHome(Path(tempfile.mkdtemp(dir=tmp_path)), {"dim": DIM, **options})  # noqa: B023

            @rule()
            def open_again(self) -> None:
                self.store.close()
                self.store = self.home.open()
                assert self.store.stats().lsn >= self.sequence

            @rule()
            def compact(self) -> None:
                self.store.compact()

            @rule()
            def purge(self) -> None:
                self.store.purge()

        run(Embedded, EXAMPLES, 30)


def test_milvus_lite(lite: Engine) -> None:
    class Lite(Machine):
        def make_home(self) -> Home:
            return MilvusHome(lite, {}, [])

    run(Lite, max(2, EXAMPLES // 20), 8)
