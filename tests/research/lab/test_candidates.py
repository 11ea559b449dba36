"""Candidates against what each must be where the answer is known."""

import pytest
import torch

from pack.lab import fields, guides, optimal, worlds
from pack.reg import rectification, schedules
from pack.reg.rectification import RECTIFICATIONS
from pack.research.lab import candidates
from pack.research.spectral import SpectralRatio


def noisy(pair, sigma, n=20):
    random = torch.Generator().manual_seed(0)
    x0 = pair.cond.sample(n, random)
    return x0 + sigma * torch.randn(x0.shape, generator=random, dtype=torch.float64)


def step_of(pair, x, sigma, w):
    d_cond, d_uncond = pair.cond.denoise(x, sigma), pair.uncond.denoise(x, sigma)
    return guides.Step(pair, x, sigma, w, d_cond, d_uncond, w * (d_cond - d_uncond))


def askew() -> worlds.Pair:
    """Two Gaussians whose axes are not aligned."""
    gaussian = lambda mean, covariance: worlds.GaussianMixture(  # noqa: E731
        torch.ones(1), torch.tensor([mean]), torch.tensor([covariance])
    )
    return worlds.Pair(
        gaussian([1.0, -0.5], [[0.5, 0.2], [0.2, 0.3]]), gaussian([0.0, 0.2], [[1.2, -0.3], [-0.3, 2.0]])
    )


@pytest.mark.parametrize("sigma", [0.1, 1.0, 8.0])
def test_newton_is_exact_for_gaussians_that_are_not_aligned(sigma):
    pair, w = askew(), 3.0
    step = step_of(pair, noisy(pair, sigma), sigma, w)
    exact = optimal.gaussian_target(pair, w).denoise(step.x, sigma) - step.d_cond
    short = exact.norm(dim=-1) < step.guidance.norm(dim=-1)  # longer ones are cut to the guidance
    assert short.sum() > 10
    torch.testing.assert_close(candidates.newton(step, 2)[0][short], exact[short])


def test_one_gradient_of_newton_is_the_ratio_along_the_guidance():
    pair, w = askew(), 3.0
    step = step_of(pair, noisy(pair, 1.0), 1.0, w)
    ratio = rectification.gain(step.guidance, RECTIFICATIONS["ratio"].measure(step)[0])
    turned = rectification.gain(step.guidance, candidates.krylov(step) * step.jc(step.guidance))
    torch.testing.assert_close(turned, ratio)


def test_local_and_shrunk_ratios_become_the_plain_one_at_the_end_of_their_scale():
    pair = fields.mixed_field(0, 0.3, n=8)
    step = step_of(pair, noisy(pair, 1.0), 1.0, 3.0)
    plain = RECTIFICATIONS["ratio"].measure(step)[0]
    torch.testing.assert_close(candidates.local_ratio(step, width=1e3)[0], plain)
    torch.testing.assert_close(candidates.spectral_shrunk(step, prior=1e9)[0], plain, rtol=1e-6, atol=1e-6)
    spectral = SpectralRatio().measure(step)[0]
    torch.testing.assert_close(candidates.spectral_shrunk(step, prior=0.0)[0], spectral)


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_candidates_lengthen_no_guidance_of_a_gaussian_field(name):
    pair = fields.field(0, 0.5, n=8)
    step = step_of(pair, noisy(pair, 1.0), 1.0, 3.0)
    rectified = candidates.CANDIDATES[name](step)[0]
    assert rectified.isfinite().all()
    assert (rectified.flatten(1).norm(dim=1) <= step.guidance.flatten(1).norm(dim=1) * (1 + 1e-9)).all()


def test_variance_law_is_exact_where_the_conditional_is_a_gaussian():
    """J_c = v / (v + sigma²) at every later step, from one measurement."""
    cond = worlds.line([1], [0.8], [0.5])
    pair = worlds.Pair(cond, worlds.line([1], [-0.2], [1.3]))
    rule = guides.ByFunction(candidates.HOLDS["jacobian-variance"])
    guide = guides.Guide(pair, schedules.constant(3.0), rule, refresh=100)
    for sigma in (5.0, 2.0, 0.7, 0.1):
        x = noisy(pair, sigma)
        expected = guides.Guide(pair, schedules.constant(3.0), RECTIFICATIONS["jacobian"])(x, sigma)
        torch.testing.assert_close(guide(x, sigma), expected)


def test_kept_bands_are_the_gain_of_each_band():
    pair = fields.field(0, 0.5, n=8)
    step = step_of(pair, noisy(pair, 1.0), 1.0, 3.0)
    rectified, kept = candidates.HOLDS["jacobian-bands"](step)
    held = rectification.gain(step.guidance, kept(step))
    torch.testing.assert_close(held, rectification.gain(step.guidance, rectified), rtol=0.02, atol=0)
