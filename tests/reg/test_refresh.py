"""When a run measures, against the rule in words."""

import pytest

from pack.reg.refresh import ALWAYS, DOUBLING, is_due, measured_steps


def test_gaps_double():
    """0, then the powers of two: 7 measurements in 50 steps, 11 in 1000."""
    assert measured_steps(50, DOUBLING) == [0, 1, 2, 4, 8, 16, 32]
    assert measured_steps(1000, DOUBLING)[1:] == [2**i for i in range(10)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_every_nth(n):
    assert measured_steps(30, n) == list(range(0, 30, n))


def test_the_first_step_is_always_due():
    assert all(is_due(step, None, refresh) for step in (0, 5) for refresh in (0, 1, 9))


@pytest.mark.parametrize("refresh", [0, 2, 4])
def test_a_step_that_was_measured_is_not_measured_again(refresh):
    """The second evaluation of a step is the same step."""
    assert not any(is_due(step, step, refresh) for step in range(40))


def test_always_is_every_evaluation():
    assert all(is_due(step, step, ALWAYS) for step in range(40))


def test_a_step_that_could_not_be_measured_is_made_up_for():
    """A cache answered step 4: step 5 is due, and the gaps go on from the next power of two."""
    assert is_due(5, 2, DOUBLING)
    assert next(step for step in range(6, 20) if is_due(step, 5, DOUBLING)) == 8
    assert is_due(5, 0, 4)
