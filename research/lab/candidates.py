"""Rectifications that were tried in search of something nearer the exact chains; docs/lab.md has the verdicts."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...lab.guides import Step
from ...reg import rectification
from ...reg.per_sample import dot
from ...reg.rectification import RECTIFICATIONS, gain
from .. import spectral

Function = Callable[[Step], tuple[Tensor, Tensor | Callable]]  # R(g), and what stands for it (`lab.guides.ByFunction`)
elementwise, jacobian, scalar_ratio = (RECTIFICATIONS[name].measure for name in ("elementwise", "jacobian", "ratio"))


def kept_by_gain(step: Step, rectified: Tensor) -> tuple[Tensor, Tensor]:
    """Between measurements a rectified guidance is its gain along the guidance."""
    return rectified, gain(step.guidance, rectified)


def spectral_min(step: Step) -> tuple[Tensor, Tensor]:
    """The smaller of the band's factor and the sample's."""
    g, jc, ju = step.guidance, step.jc(step.guidance), step.ju(step.guidance)
    index = spectral.bands(*g.shape[-2:])
    bands = rectification.ratio_factor(spectral.jacobian_ratio(g, jc, ju, index), step.w)
    whole = rectification.ratio_factor(step.rho(), step.w).view(-1, 1)
    return kept_by_gain(step, spectral.scale(g, torch.minimum(bands, whole), index))


def spectral_shrunk(step: Step, prior: float = 0.1) -> tuple[Tensor, Tensor]:
    """Bands pulled towards the sample's own ρ where the guidance has little power in them."""
    g = step.guidance
    g, jc, ju = (torch.fft.fft2(v, norm="ortho") for v in (g, step.jc(g), step.ju(g)))
    index = spectral.bands(*g.shape[-2:])
    narrow, wide = spectral.band_dot(g, jc, index), spectral.band_dot(g, ju, index)
    total_narrow, total_wide = narrow.sum(-1, keepdim=True), wide.sum(-1, keepdim=True)
    rho = ((narrow + prior * total_narrow) / (wide + prior * total_wide)).nan_to_num(1.0).clamp(0, 1)
    return kept_by_gain(step, spectral.scale(step.guidance, rectification.ratio_factor(rho, step.w), index))


def smooth(v: Tensor, width: float) -> Tensor:
    """Gaussian blur with wrapped edges, `width` in pixels: [batch, h, w]."""
    y, x = (torch.fft.fftfreq(n, dtype=v.dtype) for n in v.shape[-2:])
    kernel = torch.exp(-2 * (torch.pi * width) ** 2 * (y[:, None] ** 2 + x**2))
    return torch.fft.ifft2(kernel * torch.fft.fft2(v)).real


def local_ratio(step: Step, width: float = 4.0) -> tuple[Tensor, Tensor]:
    """The ratio pixel by pixel, of smoothed products."""
    g = step.guidance
    narrow, wide = smooth(g * step.jc(g), width), smooth(g * step.ju(g), width)
    rho = torch.where(wide > 0, narrow / torch.where(wide > 0, wide, 1.0), 1.0).clamp(0, 1)
    factor = rectification.ratio_factor(rho, step.w)
    return factor * g, factor


def newton(step: Step, iterations: int) -> tuple[Tensor, Tensor]:
    """Newton's step of the characteristic equation, D_c + w J_c Δ with [(1+w) J_u − w J_c] Δ = D_c − D_u.

    By conjugate gradients, which stop for a sample where the operator is not positive along the search direction.
    """
    w, delta = step.w, torch.zeros_like(step.x)
    residual = step.d_cond - step.d_uncond
    p, rr = residual, dot(residual, residual)
    active = rr > 0
    for _ in range(iterations):
        ap = (1 + w) * step.ju(p) - w * step.jc(p)
        curvature = dot(p, ap)
        active = active & (curvature > 1e-12 * rr)
        length = torch.where(active, rr / torch.where(active, curvature, 1.0), 0.0)
        delta, residual = delta + length * p, residual - length * ap
        rr, before = dot(residual, residual), rr
        p = residual + rr / torch.where(before > 0, before, 1.0) * p
    return bounded(step, torch.where(dot(delta, delta) > 0, w * step.jc(delta), step.guidance))


def bounded(step: Step, rectified: Tensor) -> tuple[Tensor, Tensor]:
    """Never longer than the guidance itself."""
    longest, length = (dot(v, v).sqrt() for v in (step.guidance, rectified))
    shorter = torch.where(length > longest, longest / torch.where(length > 0, length, 1.0), 1.0)
    return kept_by_gain(step, shorter * rectified)


def krylov(step: Step) -> Tensor:
    """τ = ⟨g, g⟩ / ⟨g, [(1+w) J_u − w J_c] g⟩ ≥ 0: one conjugate gradient of Newton's step, which is τ J_c g.

    Its gain along g is the ratio's ρ / (1 + w (1 − ρ)); where ρ > 1 it is taken as 1, like the ratio's.
    """
    g, w = step.guidance, step.w
    gg, narrow, wide = dot(g, g), dot(g, step.jc(g)), dot(g, step.ju(g))
    curvature = (1 + w) * wide - w * torch.minimum(narrow, wide)
    return torch.where(curvature > 0, gg / torch.where(curvature > 0, curvature, 1.0), 0.0)


def ratio_jacobian(step: Step) -> tuple[Tensor, Tensor]:
    """τ J_c g: as long as the ratio along the guidance, turned as the full Jacobian turns it."""
    return bounded(step, krylov(step) * step.jc(step.guidance))


def ratio_natural(step: Step) -> tuple[Tensor, Tensor]:
    """D_c(x + τ g): the same, evaluated instead of multiplied, so that it stays a posterior mean."""
    return bounded(step, step.moved(krylov(step) * step.guidance))


def moved_by(rule: Function) -> Function:
    """D_c(x + R(g)) in place of D_c(x) + R(g)."""
    return lambda step: kept_by_gain(step, step.moved(rule(step)[0]))


def smaller(first: Function, second: Function) -> Function:
    """Of two rectifications the shorter one, sample by sample."""

    def chosen(step: Step) -> tuple[Tensor, Tensor]:
        a, b = first(step)[0], second(step)[0]
        return kept_by_gain(step, torch.where(dot(a, a) <= dot(b, b), a, b))

    return chosen


def characteristic(step: Step, iterations: int = 5) -> tuple[Tensor, Tensor]:
    """The characteristic equation by damped fixed-point iteration (Zheng and Lan, arXiv 2312.07586)."""
    w, delta = step.w, torch.zeros_like(step.x)
    for _ in range(iterations):
        d_c = step.pair.cond.denoise(step.x + w * delta, step.level)
        d_u = step.pair.uncond.denoise(step.x + (1 + w) * delta, step.level)
        delta = delta + (d_c - d_u) / (1 + w)
    return kept_by_gain(step, step.moved(w * delta))


def kept_by_variance(rule: Function, per_sample: bool) -> Function:
    """Between measurements a factor k follows the Gaussian law k = v / (v + sigma²), with v as it was measured.

    The factor is the gain of each sample, or what the rule keeps (the elementwise map).
    """

    def held(step: Step) -> tuple[Tensor, Callable[[Step], Tensor]]:
        rectified, kept = rule(step)
        factor = gain(step.guidance, rectified) if per_sample else kept
        odds = step.level**2 * factor / (1 - factor.clamp(max=1 - 1e-9))  # v
        later = lambda s: torch.where(factor < 1, odds / (odds + s.level**2), factor)  # noqa: E731
        return rectified, lambda s: torch.where(factor > 0, later(s), factor) * s.guidance

    return held


def kept_by_bands(rule: Function) -> Function:
    """Between measurements each band of spatial frequency keeps its own gain within [0, 1]."""

    def held(step: Step) -> tuple[Tensor, Callable[[Step], Tensor]]:
        rectified, _ = rule(step)
        index = spectral.bands(*step.x.shape[-2:])
        # the gain of a band along g is its narrowing with ⟨g, g⟩ for ⟨g, J_u g⟩
        gains = spectral.jacobian_ratio(step.guidance, rectified, step.guidance, index)
        return rectified, lambda s: spectral.scale(s.guidance, gains, index)

    return held


HOLDS: dict[str, Function] = {
    "elementwise-variance": kept_by_variance(elementwise, per_sample=False),
    "jacobian-variance": kept_by_variance(jacobian, per_sample=True),
    "jacobian-bands": kept_by_bands(jacobian),
    "elementwise-one": lambda step: kept_by_gain(step, elementwise(step)[0]),
}

CANDIDATES: dict[str, Callable] = {
    "spectral-min": spectral_min,
    "spectral-shrunk": spectral_shrunk,
    "local": local_ratio,
    "newton-2": lambda step: newton(step, 2),
    "newton-4": lambda step: newton(step, 4),
    "ratio-jacobian": ratio_jacobian,
    "ratio-natural": ratio_natural,
    "ratio-moved": moved_by(scalar_ratio),
    "smaller": smaller(scalar_ratio, jacobian),
    "characteristic": characteristic,
}
