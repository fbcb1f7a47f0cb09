import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.counter_rng import derive, permuted, uniform


@given(length=st.integers(1, 300), key=st.integers(0, 2**63 - 1))
def test_permuted_is_a_permutation(length: int, key: int) -> None:
    position = np.arange(length)
    keys = np.full(length, key, dtype=np.uint64)
    result = permuted(position, np.full(length, length), keys)
    assert sorted(result.tolist()) == position.tolist()


def test_permutations_differ_by_key_and_reach_every_place() -> None:
    length, keys = 10, np.arange(4000, dtype=np.uint64)
    first = permuted(np.zeros(4000, np.int64), np.full(4000, length), derive(keys))
    counts = np.bincount(first, minlength=length)
    assert counts.min() > 300
    assert counts.max() < 500


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
def test_keys_depend_on_every_part(parts: list[int]) -> None:
    key = derive(*parts)
    assert key.shape == ()
    for position in range(len(parts)):
        changed = list(parts)
        changed[position] += 1
        assert derive(*changed) != key


def test_keys_broadcast_and_depend_on_order() -> None:
    grid = derive(0, np.arange(3)[:, None], np.arange(5))
    assert grid.shape == (3, 5)
    assert grid[2, 4] == derive(0, 2, 4)
    assert grid[1, 2] != grid[2, 1]
    assert len(np.unique(grid)) == 15


def test_uniform_numbers() -> None:
    numbers = uniform(derive(1, np.arange(500)), 40)
    assert numbers.shape == (500, 40)
    assert numbers.dtype == np.float32
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.15
    assert np.array_equal(uniform(derive(1, np.arange(500)), 7), numbers[:, :7])
