"""`kindred evaluate --index`: an index, or a store as it stands, against exact search on the same vectors."""

from pathlib import Path
from typing import Any

import numpy as np

from app.evaluate.index_figures import Vectors, build, exact_neighbours, figures, index_bytes
from app.evaluate.run import Evaluation
from models.errors import InputError
from models.metrics.inputs import as_unit_vectors
from serve.store.collection import FaissStore
from serve.store.database import Tuning

QUERIES = 1000


def measure_index(index: str, evaluation: Evaluation) -> dict[str, Any]:
    """Figures of one index on the first model's embeddings, or of a store on its own.

    Args:
        index: a FAISS factory string such as `IVF256,SQ8`, or the folder of a store.
        evaluation: where the embeddings come from.

    Raises:
        InputError: neither a store nor a factory string that fits.
    """
    if Path(index).is_dir():
        return measure_store(Path(index), evaluation.options.seed, evaluation.options.device)
    vectors: Vectors = as_unit_vectors(evaluation.models[0].vectors).numpy()
    built, seconds = build(index, vectors)
    truth = exact_neighbours(vectors, QUERIES, evaluation.options.seed)
    return figures(
        lambda queries, k: built.search(queries, k)[1],
        truth,
        index=index,
        parameters="",
        bytes=index_bytes(built),
        build_seconds=seconds,
    ).to_dict()


def measure_store(folder: Path, seed: int, device: str = "auto") -> dict[str, Any]:
    """Figures of a store's own search, all its layers included, against exact search of its vectors."""
    tuning = Tuning(device=device)
    with FaissStore.open(folder, create=False, read_only=True, tuning=tuning) as store:
        ids, vectors = store_vectors(store)
        place = {item: row for row, item in enumerate(ids)}

        def search(queries: Vectors, k: int) -> Any:
            result = store.search(queries, k, with_metadata=False)
            rows = np.full((len(queries), k), -1, dtype=np.int64)
            for line, hits in enumerate(result.hits):
                rows[line, : len(hits)] = [place[hit.id] for hit in hits]
            return rows

        truth = exact_neighbours(vectors, QUERIES, seed)
        found = figures(search, truth, index=str(folder), parameters="", bytes=0, build_seconds=0.0)
        return {**found.to_dict(), "bytes": store.stats().disk_bytes, "factory": store.stats().index}


def store_vectors(store: FaissStore) -> tuple[list[str | int], Vectors]:
    """All ids of a store and their vectors, float32 (N, dim)."""
    ids: list[str | int] = []
    vectors: list[Vectors] = []
    for item in store.scan(with_vectors=True):
        ids.append(item.id)
        vectors.append(np.asarray(item.vector, dtype=np.float32))
    if not vectors:
        raise InputError("the store is empty; fill it with kindred index")
    return ids, np.stack(vectors)
