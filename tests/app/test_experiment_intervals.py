import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.experiment.tables import paired_difference, recovered_fraction

figures = st.lists(st.floats(0, 1), min_size=5, max_size=5)


def test_paired_difference_is_students() -> None:
    one, other = [0.5, 0.6, 0.7, 0.4], [0.4, 0.45, 0.6, 0.41]
    found = paired_difference(one, other)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high])
    assert found.low < 0 < found.high
    assert paired_difference([2.0, 2.1, 2.2], [1.0, 1.2, 1.1]).low > 0


def test_one_seed_has_no_interval() -> None:
    found = paired_difference([0.5], [0.25])
    assert (found.value, found.low, found.high) == (0.25, -math.inf, math.inf)
    assert recovered_fraction([1.0], [0.0], [0.5]).value == 0.5


def test_a_loss_that_may_be_zero_bounds_no_fraction() -> None:
    found = recovered_fraction([0.5, 0.4, 0.6], [0.45, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert math.isinf(found.low)
    assert math.isnan(recovered_fraction([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]).value)


@given(figures, figures, figures)
def test_fiellers_ends_are_where_the_t_test_turns(
    better: list[float], worse: list[float], of: list[float]
) -> None:
    found = recovered_fraction(better, worse, of)
    if math.isinf(found.low):
        return
    gain, loss = np.subtract(of, worse), np.subtract(better, worse)
    critical = stats.t.ppf(0.975, 4)
    for end in (found.low, found.high):
        rest = gain - end * loss
        spread = rest.std(ddof=1) / math.sqrt(5)
        np.testing.assert_allclose(abs(rest.mean()), critical * spread, atol=1e-5 * (1 + abs(end)))
