"""Guided denoisers against truth: what each rectification must give where the answer is known."""

import pytest
import torch

from pack.lab import chains, fields, guides, optimal, worlds
from pack.reg import rectification, schedules
from pack.reg.rectification import RECTIFICATIONS
from pack.research import spectral
from pack.research.spectral import SpectralRatio

SIGMAS = [0.1, 1.0, 8.0]
RULES = guides.all_rules() | {"spectral": SpectralRatio()}


def noisy(pair, sigma, n=20):
    random = torch.Generator().manual_seed(0)
    x0 = pair.cond.sample(n, random)
    return x0 + sigma * torch.randn(x0.shape, generator=random, dtype=torch.float64)


def isotropic(mean, deviation, d) -> worlds.GaussianMixture:
    return worlds.GaussianMixture(torch.ones(1), torch.full((1, d), mean), deviation**2 * torch.eye(d)[None])


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("w", [0.5, 3.0, 7.0])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_ratio_is_exact_for_isotropic_gaussians(d, w, sigma):
    pair = worlds.Pair(isotropic(0.8, 0.5, d), isotropic(-0.2, 1.3, d))
    x = noisy(pair, sigma)
    exact = optimal.gaussian_target(pair, w).denoise(x, sigma)
    guided = guides.Guide(pair, schedules.constant(w), RECTIFICATIONS["ratio"])(x, sigma)
    torch.testing.assert_close(guided, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_ratio_is_exact_per_band_for_gaussian_fields(share, sigma):
    pair, w = fields.field(0, share, n=16), 6.0
    x = noisy(pair, sigma)
    exact = optimal.gaussian_target(pair, w).denoise(x, sigma)
    guide = guides.Guide(pair, schedules.constant(w), SpectralRatio(spectral.rings))
    torch.testing.assert_close(guide(x, sigma), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "ratio", "spectral"])
def test_rules_that_compare_models_leave_equal_models_alone(name):
    cond = fields.mixed_field(0, 0.3, n=8).cond
    pair = worlds.Pair(cond, cond)
    x = noisy(pair, 1.0)
    guided = guides.Guide(pair, schedules.constant(5.0), RULES[name])(x, 1.0)
    torch.testing.assert_close(guided, cond.denoise(x, 1.0))


@pytest.mark.parametrize("name", RULES)
def test_no_guidance_at_w_0(name):
    pair = fields.mixed_field(0, 0.3, n=8)
    x = noisy(pair, 1.0)
    guided = guides.Guide(pair, schedules.constant(0.0), RULES[name])(x, 1.0)
    torch.testing.assert_close(guided, pair.cond.denoise(x, 1.0), rtol=0, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_rectified_guidance_becomes_plain_guidance_as_sigma_vanishes(name):
    pair, sigma = fields.mixed_field(0, 0.3, n=8), 0.002
    x = noisy(pair, sigma)
    plain, rectified = (
        guides.Guide(pair, schedules.constant(2.0), rule)(x, sigma) - pair.cond.denoise(x, sigma)
        for rule in (guides.NoRectification(), RULES[name])
    )
    torch.testing.assert_close(rectified, plain, rtol=0.05, atol=0.05 * plain.abs().max().item())


@pytest.mark.parametrize("name", RULES)
def test_rectifications_commute_with_flips_and_the_order_of_the_batch(name):
    pair = fields.field(0, 0.5, n=8)
    flipped = worlds.Pair(*(_flipped(m) for m in (pair.cond, pair.uncond)))
    x = noisy(pair, 1.0)
    rule = RULES[name]
    straight = guides.Guide(pair, schedules.constant(3.0), rule)(x, 1.0)
    mirrored = guides.Guide(flipped, schedules.constant(3.0), rule)(x.flip(-1), 1.0).flip(-1)
    reordered = guides.Guide(pair, schedules.constant(3.0), rule)(x.flip(0), 1.0).flip(0)
    torch.testing.assert_close(mirrored, straight)
    torch.testing.assert_close(reordered, straight)


def _flipped(mixture: fields.FieldMixture) -> fields.FieldMixture:
    mean = fields.hartley(mixture.centres.view(-1, mixture.n, mixture.n)).flip(-1)
    return fields.FieldMixture(mixture.log_weights.exp(), mean, mixture.variances.view_as(mean))


def test_elementwise_is_the_papers_epsilon_form():
    """1 − √(1 − ᾱ) ∂(1ᵀε)/∂x_vp with x_vp = √ᾱ x and ᾱ = 1 / (1 + sigma²), by autograd."""
    pair, sigma, w = worlds.classes(0), 0.8, 3.0
    alpha_bar = 1 / (1 + sigma**2)
    x_vp = (noisy(pair, sigma) * alpha_bar**0.5).requires_grad_()

    def eps(x_vp, model):
        x = x_vp / alpha_bar**0.5
        return (x - model.denoise(x, sigma)) / sigma

    e_c, e_u = eps(x_vp, pair.cond), eps(x_vp, pair.uncond)
    (slope,) = torch.autograd.grad(e_c.sum(), x_vp)
    guided_eps = e_c + w * (1 - (1 - alpha_bar) ** 0.5 * slope) * (e_c - e_u)
    x = x_vp / alpha_bar**0.5
    guided = guides.Guide(pair, schedules.constant(w), RECTIFICATIONS["elementwise"])(x.detach(), sigma)
    torch.testing.assert_close(guided, (x - sigma * guided_eps).detach())


def test_natural_jacobian_is_the_linear_one_for_gaussians():
    pair = fields.field(0, 0.5, n=8)
    x = noisy(pair, 1.0)
    linear, natural = (
        guides.Guide(pair, schedules.constant(3.0), rule)(x, 1.0) for rule in (RULES["jacobian"], RULES["natural"])
    )
    torch.testing.assert_close(natural, linear)


@pytest.mark.parametrize("name", ["elementwise", "jacobian", "ratio"])
def test_every_second_step_holds_what_the_first_measured(name):
    pair, rule = worlds.classes(0), RULES[name]
    x = noisy(pair, 1.0)
    guide = guides.Guide(pair, schedules.constant(3.0), rule, refresh=2)
    guide(x, 1.0)
    d_cond, d_uncond = pair.cond.denoise(x, 0.9), pair.uncond.denoise(x, 0.9)
    g, first = 3 * (d_cond - d_uncond), 3 * (pair.cond.denoise(x, 1.0) - pair.uncond.denoise(x, 1.0))
    step = guides.Step(pair, x, 1.0, 3.0, pair.cond.denoise(x, 1.0), pair.uncond.denoise(x, 1.0), first)
    rectified = rule.measure(step)[0]
    factor = rectified / first if name == "elementwise" else rectification.gain(first, rectified)
    if name == "ratio":  # logit ρ rises by as much as log σ falls
        odds = step.rho() / (1 - step.rho()) * (1.0 / 0.9)
        rho = torch.where(step.rho() < 1, odds / (1 + odds), 1.0)
        factor = rho / (1 + 3 * (1 - rho))
    torch.testing.assert_close(guide(x, 0.9), d_cond + factor * g)
    fresh = guides.Guide(pair, schedules.constant(3.0), rule)(x, 0.8)
    torch.testing.assert_close(guide(x, 0.8), fresh)


def test_profile_of_gaussians_gives_the_exact_ratio():
    """With isotropic Gaussians ρ is the same for every sample: (1/v_u + 1/sigma²) / (1/v_c + 1/sigma²)."""
    pair, random = worlds.Pair(isotropic(0.8, 0.5, 2), isotropic(-0.2, 1.3, 2)), torch.Generator().manual_seed(0)
    sigmas = torch.logspace(-2, 2, 41, dtype=torch.float64)
    profile = guides.measure_profile(pair, sigmas, random)
    expected = (1 / 1.69 + 1 / sigmas**2) / (1 / 0.25 + 1 / sigmas**2)
    torch.testing.assert_close(profile.rho, expected)
    factor = 0.25 / (0.25 + sigmas**2)  # J_c, along 1 as along any direction
    torch.testing.assert_close(profile.factor[:, 0], factor)
    torch.testing.assert_close(profile.gain, factor)
    x, w = noisy(pair, 1.05), 3.0
    guided = guides.Guide(pair, schedules.constant(w), guides.ByProfile(RECTIFICATIONS["ratio"], profile))(x, 1.05)
    torch.testing.assert_close(guided, optimal.gaussian_target(pair, w).denoise(x, 1.05), rtol=0, atol=0.01)


def test_progress_runs_from_0_to_1():
    assert guides.progress(chains.SIGMA_MAX) == pytest.approx(0)
    assert guides.progress(chains.SIGMA_MIN) == pytest.approx(1)
