"""Intervals against closed forms, distances against other libraries, coverage by simulation."""

import numpy as np
import pytest
import torch
from scipy import stats

from pack.pilot import intervals


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_of_a_mean_it_is_students_interval(rng):
    x = rng.exponential(size=40)
    found = intervals.estimate(intervals.mean(x), 40, 0.95, resamples=20000)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(x.mean())
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.02 * (high - low))


def test_of_a_difference_it_is_students_paired_interval(rng):
    a = rng.normal(size=30)
    b = 0.9 * a + 0.2 * rng.normal(size=30) + 0.1
    found = intervals.estimate(intervals.difference(intervals.mean(a), intervals.mean(b)), 30, 0.99, resamples=20000)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.99)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.02 * (high - low))
    alone = intervals.estimate(intervals.mean(a), 30, 0.99)
    assert found.error < alone.error / 2


def test_mean_distance_of_pairs_and_its_error(rng):
    """For standard normals, Var of the mean of (x − y)² over pairs is 4 Var(h₁) / n + O(1/n²), with h₁ = (x² + 1)."""
    n = 400
    x = rng.normal(size=n)
    squared = (x[:, None] - x[None]) ** 2
    found = intervals.estimate(intervals.mean_over_groups([squared], [np.arange(n)]), n, 0.95)
    assert found.value == pytest.approx(2 * x.var(ddof=1))
    assert found.error == pytest.approx(np.sqrt(4 * np.var(x**2) / n), rel=0.1)


def test_intervals_of_variety_hold_what_they_promise():
    def covers(seed: int) -> bool:
        x = np.random.default_rng(seed).normal(size=24)
        distances = np.abs(x[:, None] - x[None])
        groups = [np.arange(12), np.arange(12, 24)]
        parts = [distances[np.ix_(g, g)] for g in groups]
        found = intervals.estimate(intervals.mean_over_groups(parts, groups), 24, 0.9, resamples=200)
        return found.low < 2 / np.sqrt(np.pi) < found.high

    assert 0.84 <= np.mean([covers(seed) for seed in range(250)]) <= 0.97


def test_pictures_needed_are_those_of_the_classical_formula():
    """16 s² / d² a group for 80 % power at 5 % of two groups (Lehr 1992); 7.85 of one sample."""
    found = intervals.Estimate(0.5, 2 / np.sqrt(10), -1, 2, 10)
    assert 10 * found.factor_needed(0.95) == pytest.approx(7.849 * 2**2 / 0.5**2, rel=1e-3)
    assert intervals.Estimate(0.0, 1.0, -2, 2, 10).factor_needed(0.95) == np.inf
    simulated = np.random.default_rng(0).normal(0.5, 2.0, (4000, round(10 * found.factor_needed(0.95))))
    assert np.mean(stats.ttest_1samp(simulated, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_one_picture_has_no_interval():
    found = intervals.estimate(intervals.mean(np.array([2.0])), 1, 0.95)
    assert (found.value, found.low, found.high) == (2.0, -np.inf, np.inf) and not found.is_apart_from_zero


def test_vendi_score_counts_kinds():
    """k kinds in equal shares that have nothing in common score k (Friedman & Dieng, arXiv 2210.02410)."""
    kinds = np.repeat(np.arange(4), 3)
    kernel = (kinds[:, None] == kinds[None]).astype(float)
    assert intervals.vendi([kernel], [np.arange(12)])(np.ones((1, 12)))[0] == pytest.approx(4)
    drawn = (kinds < 2).astype(float)[None]
    assert intervals.vendi([kernel], [np.arange(12)])(drawn)[0] == pytest.approx(2)


def test_kernel_and_frechet_distance_are_torchmetrics(rng):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import poly_mmd

    a, b = rng.normal(size=(60, 8)), rng.normal(0.3, 1.2, size=(60, 8))
    of_all = np.ones((1, 60))
    assert intervals.kernel_distance(a, b)(of_all)[0] == pytest.approx(
        float(poly_mmd(torch.tensor(a), torch.tensor(b)))
    )
    metric = FrechetInceptionDistance(feature=_Identity(), input_img_size=(1, 1, 8)).set_dtype(torch.float64)
    metric.update(torch.tensor(a), real=False)
    metric.update(torch.tensor(b), real=True)
    assert intervals.frechet_distance(a, b)(of_all)[0] == pytest.approx(float(metric.compute()), rel=1e-4)


class _Identity(torch.nn.Module):
    num_features = 8

    def forward(self, x):
        return x.reshape(len(x), 8)


def test_kernel_distance_is_not_biased_by_drawing_twice():
    """Of two samples of one distribution it is 0 in the mean, and so are its bootstrap's draws."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        statistic = intervals.kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(200, 4)))
        found.append(statistic(intervals.weights(rng.integers(40, size=(50, 40)), 40)).mean())
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60)


def test_precision_and_recall_of_known_sets():
    references, pictures = np.array([[-0.5], [1.0], [2.0], [10.0]]), np.array([[0.1], [0.2], [5.0], [-9.0]])
    distances = np.abs(pictures - references.T)
    reference_radii, picture_radii = intervals.radii(references, 1), intervals.radii(pictures, 1)
    assert reference_radii.tolist() == [1.5, 1, 1, 8] and picture_radii == pytest.approx([0.1, 0.1, 4.8, 9.1])
    assert intervals.precision(distances, reference_radii)(np.ones((1, 4)))[0] == 0.75  # nothing is near −9
    assert intervals.recall(distances, picture_radii)(np.ones((1, 4)))[0] == 0.75  # nothing reaches 10
    assert intervals.recall(distances, picture_radii)(np.array([[2.0, 1, 1, 0]]))[0] == 0.5  # without −9, nothing −0.5


def test_of_few_pictures_it_is_as_wide(rng):
    """Where the bootstrap alone would be 6 % too narrow."""
    x = rng.normal(size=8)
    found = intervals.estimate(intervals.mean(x), 8, 0.95, resamples=20000)
    assert found.error == pytest.approx(x.std(ddof=1) / 8**0.5, rel=0.02)
