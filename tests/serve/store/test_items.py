"""Normalizing vectors at the edges of float32, by the quick way and by the thorough one."""

import numpy as np
import pytest

from serve.store.items import unit_rows
from serve.store.types import StoreError


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30, 3e38])
def test_one_vector_and_a_row_of_many_agree(scale):
    vector = (np.array([1.0, -0.5, 0.25, 0.0]) * scale).astype(np.float32)
    one = unit_rows(vector, 4, "query")
    np.testing.assert_allclose(one, unit_rows(vector[np.newaxis], 4, "query"), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one), 1.0, atol=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(odd):
    with pytest.raises(StoreError, match="NaN or an infinite"):
        unit_rows(np.array([1, odd, 0, 0], np.float32), 4)
    with pytest.raises(StoreError, match="zero"):
        unit_rows(np.zeros(4, np.float32), 4)
