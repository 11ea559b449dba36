"""The interval of a mean, against the normal distribution's."""

import numpy as np
import pytest

from pack.research import intervals


def test_the_interval_of_many_values_is_the_normal_ones():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = intervals.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)


def test_equal_values_leave_no_doubt():
    assert intervals.bootstrap(np.full(5, 2.5)) == intervals.Interval(2.5, 2.5, 2.5)
