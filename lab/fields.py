"""Gaussian random fields with a power-law spectrum, and mixtures of them: picture-like worlds that stay exact.

Everything is diagonal in the Hartley basis, the real form of the Fourier basis: orthonormal, its own inverse, white for
white noise, and with a radial spectrum as its variances. A field is [batch, n, n]; in coordinates it is
[batch, k, n·n].
"""

import torch
from torch import Tensor

from .worlds import GaussianMixture, Pair


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform of the last two dimensions: Re F − Im F."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag


def wavenumber(n: int) -> Tensor:
    """|k| of each coefficient in cycles a picture, [n, n]."""
    k = torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64)
    return (k[:, None].square() + k.square()).sqrt()


class FieldMixture(GaussianMixture):
    """A mixture whose components share the Hartley basis."""

    def __init__(self, weights: Tensor, means: Tensor, spectra: Tensor):
        """weights: [k]; means: [k, n, n] fields; spectra: [k, n, n], the variance of each coefficient."""
        self.log_weights = (weights.double() / weights.sum()).log()
        self.n = means.shape[-1]
        self.variances = spectra.double().flatten(1)
        self.centres = self.rotate(means.double())[:, 0]

    def rotate(self, v: Tensor) -> Tensor:
        """Fields [batch, n, n] as coefficients, the same for every component: [batch, 1, n·n]."""
        return hartley(v).flatten(1)[:, None]

    def combine(self, z: Tensor) -> Tensor:
        """Sum over components of coefficients: [batch, k, n·n] -> [batch, n, n]."""
        return hartley(z.sum(1).unflatten(-1, (self.n, self.n)))


def power_law(n: int, slope: float = 1.5, floor: float = 1e-4) -> Tensor:
    """Variances ∝ (1 + |k|²)^−slope of coefficients with mean 1 (unit variance a pixel), [n, n].

    Natural pictures have amplitudes ∝ 1/|k|, that is slope 1; latents and smooth scenes are steeper.
    """
    spectrum = (1 + wavenumber(n).square()) ** -slope + floor
    return spectrum / spectrum.mean()


def between(n: int, share: float, slope: float = 1.5, cutoff: float = 4.0) -> Tensor:
    """What of the power law distinguishes classes: `share` of it at low |k|, none far above `cutoff`, [n, n]."""
    return share * torch.exp(-((wavenumber(n) / cutoff) ** 2)) * power_law(n, slope)


def field(seed: int, share: float, n: int = 32) -> Pair:
    """One class of Gaussian fields against all classes, themselves Gaussian: N(m, S − B) against N(0, S), m of N(0, B).

    Args:
        share: the share of the low frequencies' variance that lies between classes.
    """
    random = torch.Generator().manual_seed(seed)
    total, apart = power_law(n), between(n, share)
    mean = hartley(apart.sqrt() * torch.randn(n, n, generator=random, dtype=torch.float64))
    one = torch.ones(1)
    return Pair(
        FieldMixture(one, mean[None], (total - apart)[None]), FieldMixture(one, torch.zeros(1, n, n), total[None])
    )


def mixed_field(seed: int, share: float, n: int = 32, count: int = 3, components: int = 2) -> Pair:
    """One class of a mixture of fields against all classes: picture-like, and not Gaussian.

    Half of `share` moves whole classes, half the components within a class; spectra differ in steepness, so that
    textures tell components apart too.
    """
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, n, n, generator=random, dtype=torch.float64)  # noqa: E731
    k = count * components
    moves = normal(count, 1) + normal(count, components)
    means = hartley((between(n, share) / 2).sqrt() * moves).reshape(k, n, n)
    slopes = 1.3 + 0.4 * torch.rand(k, generator=random, dtype=torch.float64)
    spectra = (1 - share) * torch.stack([power_law(n, slope.item()) for slope in slopes])
    weights = 0.5 + torch.rand(k, generator=random, dtype=torch.float64)
    own = slice(components)
    return Pair(FieldMixture(weights[own], means[own], spectra[own]), FieldMixture(weights, means, spectra))
