"""Rows of a segment that pass a filter, as positions and as a mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.store.segment import Segment, positions_of
from serve.store.types import SearchQuery

ROW_IDS = st.lists(st.integers(1, 60), min_size=1, unique=True).map(sorted) | st.builds(
    lambda first, count: list(range(first, first + count)), st.integers(1, 30), st.integers(1, 40)
)


@given(some=ROW_IDS | st.just([]), among=ROW_IDS)
def test_positions_are_those_of_the_common_ids(some: list[int], among: list[int]) -> None:
    found = positions_of(np.array(some, np.int64), np.array(among, np.int64))
    assert found.dtype == np.int64
    assert [among[at] for at in found.tolist()] == [row_id for row_id in some if row_id in among]


class Thorough:
    """An approximate index that misses nothing, and is preferred to a scan where it may be."""

    rows_per_neighbour = 0

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def least(self, k: int, effort: int | None = None) -> int:
        return k

    def search(
        self, queries: np.ndarray, k: int, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        similarities = queries @ self.vectors.T
        rows = np.argsort(-similarities, axis=1)[:, :k]
        return np.take_along_axis(similarities, rows, axis=1), rows, len(self.vectors)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 24, 25, 26, 120, 200])
def test_a_selection_of_either_form_finds_the_same(count: int, dies: bool, indexed: bool) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((200, 8), dtype=np.float32)
    row_ids = np.sort(rng.permutation(1000)[:200])
    segment = Segment("a", row_ids, vectors, approximate=Thorough(vectors) if indexed else None)
    if dies:
        segment = segment.without(np.sort(rng.permutation(row_ids)[:50]))
    chosen = np.sort(rng.permutation(row_ids)[:count])
    selection = segment.selection(chosen)
    mask = np.isin(row_ids, chosen)
    # Positions of 8 bytes where they take no more memory than a mask.
    assert selection.nbytes <= len(mask)
    assert segment.row_ids[selection].tolist() == chosen.tolist()
    queries = rng.standard_normal((3, 8), dtype=np.float32)
    for k in (1, 10):
        found, expected = (segment.find(queries, k, rows, SearchQuery(k)) for rows in (selection, mask))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        assert found[2] == expected[2]
        alive = np.flatnonzero(mask if segment.dead is None else mask & ~segment.dead)
        naive = alive[np.argsort(-(queries @ vectors[alive].T), axis=1)[:, :k]]
        np.testing.assert_array_equal(found[1], naive)
