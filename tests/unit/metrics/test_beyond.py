import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclctl.metrics.beyond import coverage, exposure, gini, novelty


def test_exposure_counts_and_skips_empty_places():
    top = np.array([[0, 2], [2, -1]])
    assert exposure(top, 4).tolist() == [1, 0, 2, 0]
    assert coverage(exposure(top, 4)) == 0.5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_gini_agrees_with_the_mean_absolute_difference(counts):
    values = np.array(counts)
    if values.sum() == 0:
        assert gini(values) is None
        return
    reference = np.abs(values[:, None] - values[None, :]).mean() / (2 * values.mean())
    assert gini(values) == pytest.approx(reference, abs=1e-12)


def test_gini_of_equal_and_of_one_sided_exposure():
    assert gini(np.array([3, 3, 3, 3])) == 0.0
    assert gini(np.array([0, 0, 0, 8])) == 0.75


def test_novelty_in_bits():
    # p = (3 + 1) / (6 + 2) and (3 + 1) / (6 + 2): one bit each.
    assert novelty(np.array([5, 1]), np.array([3, 3])) == pytest.approx(1.0)
    # p = 8/16 = 1 bit, shown once; p = 1/16 = 4 bits, shown twice: mean 3.
    assert novelty(np.array([1, 2, 0]), np.array([7, 0, 6])) == pytest.approx(3.0)


def test_nothing_shown_has_no_value():
    nothing = np.zeros(3, dtype=int)
    assert coverage(nothing) == 0.0
    assert gini(nothing) is None and novelty(nothing, np.ones(3)) is None
    assert coverage(np.empty(0)) is None
