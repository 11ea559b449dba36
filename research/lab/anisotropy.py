"""How far the rules are from the exact guidance between Gaussians that are not isotropic, and how ρ differs between samples."""

from itertools import product

import pandas as pd
import torch
from torch import Tensor

from ...lab import guides, optimal, worlds
from ...reg import rectification
from .trials import rule_of

DIMENSIONS, PAIRS, POINTS = 16, 12, 100
WEIGHTS, SIGMAS = (1.0, 3.0, 7.0), (0.2, 0.5, 1.0, 2.0, 5.0)
RULES = ("none", "elementwise", "jacobian", "ratio", "ratio-jacobian", "newton-2", "newton-4")


def pair(seed: int) -> worlds.Pair:
    """Two Gaussians with axes of their own, whose variances go over a factor of 40; the conditional is inside the other."""
    random = torch.Generator().manual_seed(seed)
    cond = _covariance(random)
    uncond = cond + _covariance(random)  # so that ρ ≤ 1 in every direction
    mean = torch.randn(2, DIMENSIONS, generator=random, dtype=torch.float64)
    return worlds.Pair(gaussian(mean[0], cond), gaussian(mean[1], uncond))


def gaussian(mean: Tensor, covariance: Tensor) -> worlds.GaussianMixture:
    return worlds.GaussianMixture(torch.ones(1), mean[None], covariance[None])


def _covariance(random: torch.Generator) -> Tensor:
    axes = torch.linalg.qr(torch.randn(DIMENSIONS, DIMENSIONS, generator=random, dtype=torch.float64))[0]
    variances = torch.logspace(-1.6, 0, DIMENSIONS, dtype=torch.float64)
    return axes @ variances.diag() @ axes.T


def measured(seed: int, w: float, sigma: float) -> list[dict]:
    """Each rule's error over the exact guidance, mean over samples, and the spread of ρ."""
    both, random = pair(seed), torch.Generator().manual_seed(1000 + seed)
    x = both.cond.sample(POINTS, random)
    x = x + sigma * torch.randn(x.shape, generator=random, dtype=x.dtype)
    d_cond, d_uncond = both.cond.denoise(x, sigma), both.uncond.denoise(x, sigma)
    exact = optimal.gaussian_target(both, w).denoise(x, sigma) - d_cond
    step = guides.Step(both, x, sigma, w, d_cond, d_uncond, w * (d_cond - d_uncond))
    rho, rows = step.rho(), []
    for name in RULES:
        rectified = rule_of(name, both).measure(step)[0]
        off = ((rectified - exact).norm(dim=1) / exact.norm(dim=1)).mean().item()
        rows.append({"rule": "CFG" if name == "none" else name, "w": w, "sigma": sigma, "pair": seed, "off": off})
    mean_f = rectification.ratio_factor(rho, w).mean().item()
    f_of_mean = rectification.ratio_factor(rho.mean(), w).item()
    return [
        *rows,
        {"rule": "ρ", "w": w, "sigma": sigma, "pair": seed, "sd": rho.std().item(), "convex": f_of_mean / mean_f},
    ]


def table() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Errors by rule, w and sigma, means over pairs; and of ρ the spread over samples and f(mean ρ) over mean f(ρ)."""
    rows = [row for case in product(range(PAIRS), WEIGHTS, SIGMAS) for row in measured(*case)]
    frame = pd.DataFrame(rows)
    errors = frame[frame.rule != "ρ"].groupby(["rule", "w", "sigma"], sort=False).off.mean()
    spread = frame[frame.rule == "ρ"].groupby(["w", "sigma"], sort=False)[["sd", "convex"]].mean()
    return errors.unstack("sigma"), spread.unstack("sigma")


def text() -> tuple[pd.DataFrame, str]:
    from .. import markdown

    errors, spread = table()
    shown = errors.map(lambda value: f"{value:.0%}").reset_index()
    shown.columns = ["rule", "w", *(f"σ = {sigma:g}" for sigma in SIGMAS)]
    of_rho = spread.map(lambda value: f"{value:.3f}").reset_index()
    of_rho.columns = ["w", *(f"{what}, σ = {s:g}" for what in ("spread of ρ", "f(mean ρ) / mean f") for s in SIGMAS)]
    parts = (
        f"Error of the guidance over the exact guidance, mean over {PAIRS} pairs of Gaussians in {DIMENSIONS} dimensions and "
        f"{POINTS} noisy samples of each:",
        markdown.of(shown.astype(str)),
        "The standard deviation of ρ over samples, and what a mean ρ does to f, which is convex in ρ:",
        markdown.of(of_rho.astype(str)),
    )
    return errors.reset_index(), "\n\n".join(parts)
