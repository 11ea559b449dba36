"""How far samples are from the exact target."""

import numpy as np
from torch import Tensor

from .chains import SIGMA_MAX
from .fields import FieldMixture
from .worlds import GaussianMixture


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of samples: [n, ...], [m, ...]; in the units of x.

    The root mean square over random directions of W2 along each, where it is the L2 distance of the quantile functions:
    steps at k/n and k/m (Bonneel et al. 2015).
    """
    a, b = (points.flatten(1).numpy() for points in (a, b))
    directions = np.random.RandomState(seed).normal(size=(a.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    a, b = (np.sort(points @ directions, axis=0) for points in (a, b))
    ends = np.union1d(np.arange(1, len(a) + 1) / len(a), np.arange(1, len(b) + 1) / len(b))
    widths = np.diff(ends, prepend=0)
    middles = ends - widths / 2
    apart = a[(middles * len(a)).astype(int)] - b[(middles * len(b)).astype(int)]
    return float(np.sqrt((widths @ apart**2).mean()))


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
