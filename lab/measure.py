"""How far samples are from the exact target."""

import ot
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
