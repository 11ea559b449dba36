"""Guided denoisers: a guidance rule (a schedule of w and a pair of models) and a rectification, under one signature.

`Guide(pair, schedule, rectification)(x, sigma)` is the guided prediction [batch, ...], ready for any chain. A guide
keeps what it measured between steps, so it serves one chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..reg import rectification, rules, schedules, spectral
from .chains import SIGMA_MAX, SIGMA_MIN
from .worlds import Pair


def each(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of [batch, ...] tensors, vectorised: the lab's batches are thousands of small samples."""
    return lambda *tensors: torch.vmap(lambda *rows: function(*(row[None] for row in rows))[0])(*tensors)


gain, narrowing = each(rectification.gain), each(rectification.jacobian_ratio)


@dataclass
class Step:
    """A guided step as a rectification sees it; alpha = 1 in the lab. Tensors are [batch, ...]."""

    pair: Pair
    x: Tensor
    sigma: float
    w: float
    d_cond: Tensor
    d_uncond: Tensor
    guidance: Tensor

    def jc(self, v: Tensor) -> Tensor:
        """J_c v, exactly (J is symmetric: also J_cᵀ v)."""
        return self.pair.cond.product(self.x, self.sigma, v)

    def ju(self, v: Tensor) -> Tensor:
        """J_u v, exactly."""
        return self.pair.uncond.product(self.x, self.sigma, v)

    def moved(self, v: Tensor) -> Tensor:
        """What D_c gains when x moves by v: D_c(x + v) − D_c(x)."""
        return self.pair.cond.denoise(self.x + v, self.sigma) - self.d_cond

    def rho(self) -> Tensor:
        """ρ of the guidance, [batch, 1, ...]."""
        return narrowing(self.guidance, self.jc(self.guidance), self.ju(self.guidance))


# What stands for a rectification until it is measured anew: a factor of g, or a function of the later step.
Kept = Tensor | float | Callable[[Step], Tensor]
Rectification = Callable[[Step], tuple[Tensor, Kept]]  # the rectified guidance, and what is kept of it


def none(step: Step) -> tuple[Tensor, float]:
    """The guidance as it is."""
    return step.guidance, 1.0


def elementwise(step: Step) -> tuple[Tensor, Tensor]:
    """The paper's Jᵀ1 ⊙ g."""
    factor = rectification.elementwise_factor(step.jc(torch.ones_like(step.x)), 1.0)
    return factor * step.guidance, factor


def kept_by_gain(step: Step, rectified: Tensor) -> tuple[Tensor, Tensor]:
    """Between measurements a rectified guidance is its gain along the guidance."""
    return rectified, gain(step.guidance, rectified)


def jacobian(step: Step) -> tuple[Tensor, Tensor]:
    """The whole chain rule Jᵀg."""
    return kept_by_gain(step, step.jc(step.guidance))


def natural(step: Step) -> tuple[Tensor, Tensor]:
    """The chain rule at its natural step: D_reg = D_c(x + g)."""
    return kept_by_gain(step, step.moved(step.guidance))


def ratio(step: Step) -> tuple[Tensor, Tensor]:
    """ρ / (1 + w (1 − ρ)) g, one number a sample."""
    factor = rectification.ratio_factor(step.rho(), step.w)
    return factor * step.guidance, factor


def spectral_ratio(step: Step, bands: Callable = spectral.bands) -> tuple[Tensor, Tensor]:
    """The ratio by bands of spatial frequency."""
    g = step.guidance
    return kept_by_gain(step, spectral.ratio(g, step.jc(g), step.ju(g), step.w, bands(*g.shape[-2:])))


RECTIFICATIONS: dict[str, Rectification] = {
    "none": none,
    "elementwise": elementwise,
    "jacobian": jacobian,
    "natural": natural,
    "ratio": ratio,
    "spectral": spectral_ratio,
}


def progress(sigma: float) -> float:
    """How far a run is, 0 at SIGMA_MAX to 1 at SIGMA_MIN, in log sigma: ComfyUI's percent for continuous EDM models."""
    return 1 - math.log(sigma / SIGMA_MIN) / math.log(SIGMA_MAX / SIGMA_MIN)


@dataclass
class Guide:
    """A guidance rule with its rectification; call it with x: [batch, ...] and sigma."""

    pair: Pair
    schedule: schedules.Schedule
    rectification: Rectification = none
    every: int = 1  # measure anew every n-th guided evaluation
    _evaluations: int = field(default=0, init=False)
    _kept: Kept = field(default=1.0, init=False)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        w = self.schedule(progress(sigma), sigma)
        d_cond = self.pair.cond.denoise(x, sigma)
        if w == 0:
            return d_cond
        d_uncond = self.pair.uncond.denoise(x, sigma)
        guidance = rules.cfg(d_cond, d_uncond, w)
        step = Step(self.pair, x, sigma, w, d_cond, d_uncond, guidance)
        return rectification.blend(d_cond, guidance, self._rectified(step))

    def _rectified(self, step: Step) -> Tensor:
        due = self._evaluations % self.every == 0
        self._evaluations += 1
        if not due:
            return self._kept(step) if callable(self._kept) else self._kept * step.guidance
        rectified, self._kept = self.rectification(step)
        return rectified


@dataclass(frozen=True)
class Profile:
    """A curve over noise levels, measured once for a model: interpolated in log sigma, constant beyond its ends."""

    sigmas: Tensor  # ascending, [n]
    values: Tensor  # [n]

    def __call__(self, sigma: float) -> float:
        x = self.sigmas.log()
        right = torch.searchsorted(x, math.log(sigma)).clamp(1, len(x) - 1)
        t = ((math.log(sigma) - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
        return torch.lerp(self.values[right - 1], self.values[right], t).item()


def measure_profile(
    pair: Pair, sigmas: Tensor, measure: Callable[[Step], Tensor], generator: torch.Generator
) -> Profile:
    """The mean over noisy conditional samples of `measure(step)`, [batch, ...], at each of the ascending sigmas."""
    x0 = pair.cond.sample(256, generator)
    values = []
    for sigma in sigmas.tolist():
        x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        d_cond, d_uncond = pair.cond.denoise(x, sigma), pair.uncond.denoise(x, sigma)
        values.append(measure(Step(pair, x, sigma, 1.0, d_cond, d_uncond, d_cond - d_uncond)).mean())
    return Profile(sigmas, torch.stack(values))


def ratio_by_profile(profile: Profile) -> Rectification:
    """The ratio with ρ read off a profile: no further evaluation."""

    def by_profile(step: Step) -> tuple[Tensor, Tensor]:
        factor = rectification.ratio_factor(torch.tensor(profile(step.sigma), dtype=torch.float64), step.w)
        return factor * step.guidance, factor

    return by_profile


def elementwise_by_profile(profile: Profile) -> Rectification:
    """The paper's map as one number a noise level, read off a profile."""
    return lambda step: (profile(step.sigma) * step.guidance, profile(step.sigma))
