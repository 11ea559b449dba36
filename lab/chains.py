"""Whole sampling chains from pure noise to a sample, for any denoiser `denoise(x, sigma)`."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]  # x [batch, ...], sigma -> D(x; sigma), same shape

SIGMA_MIN, SIGMA_MAX = 0.03, 80.0


def karras(steps: int, rho: float = 7.0) -> list[float]:
    """Noise levels from SIGMA_MAX to SIGMA_MIN and 0, `steps` + 1 of them (Karras et al. 2022, equation 5)."""
    t = torch.linspace(SIGMA_MAX ** (1 / rho), SIGMA_MIN ** (1 / rho), steps, dtype=torch.float64) ** rho
    return [*t.tolist(), 0.0]


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Where chains start: pure noise of the highest level."""
    return SIGMA_MAX * torch.randn(shape, generator=generator, dtype=torch.float64)


def euler(denoise: Denoise, x: Tensor, sigmas: list[float], generator: torch.Generator | None = None) -> Tensor:
    """Euler steps of dx/dsigma = (x − D)/sigma, the probability flow; deterministic."""
    for sigma, following in pairwise(sigmas):
        d = denoise(x, sigma)
        x = d + (following / sigma) * (x - d)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: list[float], generator: torch.Generator | None = None) -> Tensor:
    """Heun's second-order steps of the same flow, Euler for the last (Karras et al. 2022, algorithm 1)."""
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (ahead - denoise(ahead, following)) / following) / 2
        x = x + (following - sigma) * slope
    return x


def ancestral(denoise: Denoise, x: Tensor, sigmas: list[float], generator: torch.Generator) -> Tensor:
    """DDPM steps: x ~ q(x_s | x_t, x0 = D), with s the following level (Ho et al. 2020, equation 7, in sigma form)."""
    for sigma, following in pairwise(sigmas):
        d = denoise(x, sigma)
        kept = (following / sigma) ** 2
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = d + kept * (x - d) + following * (1 - kept) ** 0.5 * fresh
    return x


SAMPLERS = {"euler": euler, "heun": heun, "ancestral": ancestral}
