"""Closed forms of intervals, compared with scipy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_ind

from hotplate.base.intervals import Sample, difference_interval, rate_interval, share_interval


@given(st.integers(1, 10_000), st.data())
def test_interval_of_a_share_is_wilsons(count: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, count))
    expected = binomtest(part, count).proportion_ci(method="wilson")
    assert share_interval(part / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("counts", [(30, 30), (40, 400), (1_000, 50)])
def test_interval_of_a_difference_is_welchs(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.lognormal(1, deviation, count) for deviation, count in zip((0.5, 1.0), counts, strict=True))
    expected = ttest_ind(b, a, equal_var=False).confidence_interval()
    interval = difference_interval(Sample.of(a.tolist()), Sample.of(b.tolist()))
    assert interval == pytest.approx((expected.low, expected.high), rel=1e-3)


def test_interval_of_equal_values_is_their_difference() -> None:
    assert difference_interval(Sample.of([1.0] * 30), Sample.of([3.0] * 30)) == (2.0, 2.0)
    assert difference_interval(Sample.of([]), Sample.of([])) == (0.0, 0.0)


def test_interval_of_a_rate_is_that_of_its_standard_error() -> None:
    assert rate_interval(100, 400) == pytest.approx((0.201, 0.299), abs=1e-3)
    assert rate_interval(2, 400) == pytest.approx((0.0, 0.0119), abs=1e-4)
    assert rate_interval(0, 5) is rate_interval(5, 0) is None
