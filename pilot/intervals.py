"""Numbers with intervals, from pictures that are paired over the arms: bootstrap by scipy.

A statistic is a function of weights, how often each picture is drawn: [draws, n] -> [draws]. Drawing the same pictures of
two arms and taking the difference is the paired bootstrap (Efron & Tibshirani 1993, chapter 8).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 1000
POWER = 0.8  # how surely a difference is to be seen, where the pictures that are needed for it are told


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error and its interval; n is how many independent drawings it comes from."""

    value: float
    error: float
    low: float
    high: float
    n: int

    @property
    def is_apart_from_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def factor_needed(self, level: float) -> float:
        """How many times as many pictures would show a true difference of this size with POWER at this level.

        The standard error falls with the root of n (Lehr 1992): (z_level + z_power)² error² / value².
        """
        if self.value == 0:
            return float("inf")
        quantiles = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(POWER)
        return max(1.0, (quantiles * self.error / self.value) ** 2)


def estimate(statistic: Statistic, n: int, level: float, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of n pictures with its interval: value ± t · error, t of n − 1 degrees of freedom.

    The error is the bootstrap's times √(n / (n − 1)): of a mean, that makes Student's interval.
    """
    value = float(statistic(np.ones((1, n)))[0])
    if n < 2:
        return Estimate(value, float("inf"), float("-inf"), float("inf"), n)

    def of_draws(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(weights(np.atleast_2d(index), n)).reshape(index.shape[:-1])

    drawn = stats.bootstrap(
        (np.arange(n),), of_draws, n_resamples=resamples, vectorized=True, method="percentile", **_seeded(0)
    )
    error = float(drawn.standard_error) * np.sqrt(n / (n - 1))
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Estimate(value, error, value - reach, value + reach, n)


def _seeded(seed: int) -> dict:
    """The same drawings every time, by the name that this scipy has for it."""
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    return {name: np.random.default_rng(seed)}


def difference(a: Statistic, b: Statistic) -> Statistic:
    """a − b on the same pictures."""
    return lambda w: a(w) - b(w)


def weights(index: np.ndarray, n: int) -> np.ndarray:
    """How often each of n pictures is drawn: indices [draws, n] -> [draws, n]."""
    draws = len(index)
    flat = (index + n * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * n).reshape(draws, n).astype(float)


def mean(values: np.ndarray) -> Statistic:
    """The mean of one number a picture, [n]."""
    return lambda w: w @ values / w.sum(1)


def absolute(statistic: Statistic) -> Statistic:
    return lambda w: np.abs(statistic(w))


def mean_over_groups(values: list[np.ndarray], groups: list[np.ndarray]) -> Statistic:
    """The mean of pairs of different pictures of a group, over all groups: matrices [k, k] and the pictures' indices [k].

    A picture that is drawn twice is no pair with itself, so that the bootstrap is not biased towards 0.
    """
    matrices = [np.where(np.eye(len(v), dtype=bool), 0.0, v) for v in values]

    def statistic(w: np.ndarray) -> np.ndarray:
        total, pairs = np.zeros(len(w)), np.zeros(len(w))
        for matrix, group in zip(matrices, groups, strict=True):
            drawn = w[:, group]
            total += np.einsum("bi,bi->b", drawn @ matrix, drawn)
            pairs += drawn.sum(1) ** 2 - (drawn**2).sum(1)
        return total / np.maximum(pairs, 1e-12)

    return statistic


def vendi(kernels: list[np.ndarray], groups: list[np.ndarray]) -> Statistic:
    """The Vendi score (Friedman & Dieng, arXiv 2210.02410), mean over groups: how many different pictures there seem to be.

    exp of the entropy of the eigenvalues of K / n, here of √p K √p with the shares p that were drawn; kernels [k, k] have
    a diagonal of 1.
    """

    def of_group(kernel: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        share = np.sqrt(drawn / np.maximum(drawn.sum(1, keepdims=True), 1))
        values = np.linalg.eigvalsh(kernel * share[:, :, None] * share[:, None, :]).clip(1e-12)
        return np.where(drawn.any(1), np.exp(-(values * np.log(values)).sum(1)), np.nan)

    return lambda w: np.nanmean(
        [of_group(kernel, w[:, group]) for kernel, group in zip(kernels, groups, strict=True)], axis=0
    )


def kernel_distance(pictures: np.ndarray, references: np.ndarray) -> Statistic:
    """KID (Bińkowski et al., arXiv 1801.01401): unbiased MMD² with the kernel (x·y / d + 1)³, features [n, d] and [m, d]."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    own, between, theirs = kernel(pictures, pictures), kernel(pictures, references), kernel(references, references)
    np.fill_diagonal(own, 0)
    m = len(references)
    within_references = (theirs.sum() - np.trace(theirs)) / (m * (m - 1))
    to_references = between.mean(1)

    def statistic(w: np.ndarray) -> np.ndarray:
        within = np.einsum("bi,bi->b", w @ own, w) / np.maximum(w.sum(1) ** 2 - (w**2).sum(1), 1e-12)
        return within + within_references - 2 * (w @ to_references) / w.sum(1)

    return statistic


def frechet_distance(pictures: np.ndarray, references: np.ndarray) -> Statistic:
    """FID's distance (Heusel et al., arXiv 1706.08500) of features [n, d] and [m, d]: it falls as n grows.

    |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½, whose last trace is the nuclear norm of C₁^½ C₂^½.
    """
    centre, covariance = references.mean(0), np.atleast_2d(np.cov(references.T))
    root = _root(covariance)

    def of(w: np.ndarray) -> float:
        m, c = w @ pictures / w.sum(), np.atleast_2d(np.cov(pictures.T, fweights=w.astype(int)))
        cross = np.linalg.norm(_root(c) @ root, "nuc")
        return float(((m - centre) ** 2).sum() + np.trace(c) + np.trace(covariance) - 2 * cross)

    return lambda w: np.array([of(row) for row in w])


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def precision(distances: np.ndarray, reference_radii: np.ndarray) -> Statistic:
    """Precision (Kynkäänniemi et al., arXiv 1904.06991): pictures within reach of a reference; distances [n, m], radii [m]."""
    return mean((distances <= reference_radii).any(1).astype(float))


def recall(distances: np.ndarray, picture_radii: np.ndarray) -> Statistic:
    """Recall (the same paper): references within reach of a picture; distances [n, m], radii [n]."""
    reaches = (distances <= picture_radii[:, None]).astype(float)
    return lambda w: ((w > 0) @ reaches > 0).mean(1)


def radii(features: np.ndarray, neighbour: int) -> np.ndarray:
    """The distance of each to its k-th neighbour, [n]."""
    from scipy.spatial import cKDTree

    neighbour = min(neighbour, len(features) - 1)
    return cKDTree(features).query(features, neighbour + 1)[0][:, -1]
