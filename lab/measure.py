"""How far samples are from the exact target, and how sure that is."""

from dataclasses import dataclass

import numpy as np
import ot
from scipy import stats
from torch import Tensor

from .chains import SIGMA_MAX
from .fields import FieldMixture
from .worlds import GaussianMixture


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of samples: [n, ...], [m, ...]; in the units of x (POT)."""
    a, b = (points.flatten(1).numpy() for points in (a, b))
    return float(ot.sliced_wasserstein_distance(a, b, n_projections=projections, seed=seed))


def mode_error(samples: Tensor, mixture: GaussianMixture, mass: Tensor) -> float:
    """Total variation between the mass samples give to each component and the exact one: [n, d], [k] -> 0 to 1."""
    return (mixture.responsibilities(samples).mean(0) - mass).abs().sum().item() / 2


def field_distance(start: Tensor, samples: Tensor, target: FieldMixture) -> float:
    """2-Wasserstein distance a pixel of a chain's fields to a Gaussian target: [n, size, size] twice.

    Coefficients are independent, and a chain carries each from where it started almost affinely; its mean and variance
    are those of the fitted line and what is left, which has no sampling noise where the rule is linear.

    Args:
        start: draws of N(0, SIGMA_MAX²), where the chain began.
    """
    z, y = (target.rotate(v)[:, 0] for v in (start, samples))
    centred = z - z.mean(0)
    slope = (centred * y).sum(0) / centred.square().sum(0)
    mean = y.mean(0) - slope * z.mean(0)
    rest = (y - mean - slope * z).square().mean(0)
    deviation = ((slope * SIGMA_MAX) ** 2 + rest).sqrt()
    return ((mean - target.centres[0]) ** 2 + (deviation - target.variances[0].sqrt()) ** 2).mean().sqrt().item()


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of one number a seed and its bootstrap interval over seeds (scipy, percentile): [seeds]."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
    return Interval(mean, *map(float, found.confidence_interval))


def win_ratio(error: Tensor, baseline: Tensor) -> float:
    """The share of points where a rule's error [n] is below the baseline's [n]."""
    return (error < baseline).double().mean().item()
