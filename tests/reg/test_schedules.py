"""Schedules against the authors' own definitions, written out from the papers and their code."""

import math

import pytest

from pack.reg import schedules

TIMES = [999, 750, 400, 123, 1, 0]  # DiT's timesteps, of 1000
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMAS = [80.0, 14.6, 2.9, 1.0, 0.28, 0.002]


@pytest.mark.parametrize("t", TIMES)
def test_cosine_is_mdts_power_cosine(t):
    """scale (1 − cos(π (1 − t/1000)^s)) / 2 (zhengqigao/REG, DiT, cfg_type cosine; MDT)."""
    expected = (1 - math.cos(math.pi * (1 - t / 1000) ** 4.0)) * 0.5 * 3.5
    assert schedules.cosine(3.5, 4.0)(1 - t / 1000, 1.0) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_cosine_is_edms_with_progress_in_sigma(sigma):
    expected = (1 - math.cos(math.pi * (1.0 - sigma / SIGMA_MAX) ** 2.0)) * 0.5 * 2.0
    assert schedules.cosine(2.0, 2.0)(1 - sigma / SIGMA_MAX, sigma) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_linear_is_edms_ramp(sigma):
    """k (t − sigma_max) + start with k = (start − end) / (sigma_max − sigma_min) (zhengqigao/REG, EDM2)."""
    start, end = 0.5, 3.0
    expected = (start - end) / (SIGMA_MAX - SIGMA_MIN) * (sigma - SIGMA_MAX) + start
    progress = (SIGMA_MAX - sigma) / (SIGMA_MAX - SIGMA_MIN)
    assert schedules.linear(start, end)(progress, sigma) == pytest.approx(expected)


def test_linear_joins_its_ends():
    assert schedules.linear(0.5, 3.0)(0.0, 80.0) == 0.5
    assert schedules.linear(0.5, 3.0)(1.0, 0.002) == 3.0


@pytest.mark.parametrize(("sigma", "guided"), [(2.91, False), (2.90, True), (1.0, True), (0.28, True), (0.27, False)])
def test_interval_includes_its_ends(sigma, guided):
    """min ≤ t ≤ max, with the paper's EDM2 setting 0.28 to 2.90."""
    assert schedules.interval(2.0, 0.28, 2.90)(0.5, sigma) == (2.0 if guided else 0.0)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_exponential_is_c2fgs_decay_of_cfg(t):
    """ω(t) = ω0 e^(−λt), where ω is cfg = w + 1 and t = 0 is the clean end (arXiv 2603.08155)."""
    assert 1 + schedules.exponential(6.0, 1.5)(1 - t, 1.0) == pytest.approx(7.0 * math.exp(-1.5 * t))


def test_constant_is_constant():
    assert {schedules.constant(2.5)(p, s) for p, s in [(0.0, 80.0), (1.0, 0.0)]} == {2.5}
