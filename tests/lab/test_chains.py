"""Chains of exact denoisers reproduce the distribution they denoise."""

from itertools import pairwise

import pytest
import torch

from pack.lab import chains, fields, guides, measure, optimal, worlds
from pack.reg import schedules

SIGMAS = chains.karras(60)


def affine_chain(sampler, variance, mean, sigmas):
    """Mean and variance of a chain on N(mean, variance) from the recursion for one coefficient, by hand."""
    m, v = 0.0, chains.SIGMA_MAX**2
    for s, t in pairwise(sigmas):
        gain = variance / (variance + s * s)
        if sampler == "euler":
            a, fresh = gain + t / s * (1 - gain), 0.0
            b = (1 - t / s) * (1 - gain) * mean
        else:
            kept = (t / s) ** 2
            a, fresh = gain + kept * (1 - gain), t * t * (1 - kept)
            b = (1 - kept) * (1 - gain) * mean
        m, v = a * m + b, a * a * v + fresh
    return m, v


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_chain_of_a_gaussian_has_the_recursions_mean_and_variance(sampler):
    random, n = torch.Generator().manual_seed(0), 40000
    world = worlds.line([1], [1.3], [0.6])
    x = chains.SAMPLERS[sampler](world.denoise, chains.noise((n, 1), random), SIGMAS, random)
    mean, variance = affine_chain(sampler, 0.36, 1.3, SIGMAS)
    assert x.mean().item() == pytest.approx(mean, abs=5 * (variance / n) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
    assert (mean, variance) == pytest.approx((1.3, 0.36), abs=0.06)


def test_heun_converges_faster_than_euler():
    world, x = worlds.line([1], [1.3], [0.6]), torch.full((1, 1), 50.0, dtype=torch.float64)
    exact = 1.3 + 0.6 * (50 - 1.3) / (0.36 + chains.SIGMA_MAX**2) ** 0.5

    def error(sampler, steps):
        return abs(sampler(world.denoise, x, chains.karras(steps)).item() - exact)

    # 60 to 120 steps halves an error of first order and quarters one of second order
    assert error(chains.euler, 60) / error(chains.euler, 120) == pytest.approx(2, abs=0.3)
    assert error(chains.heun, 60) < error(chains.euler, 120) / 5


@pytest.mark.parametrize("sampler", chains.SAMPLERS)
def test_exact_guidance_samples_the_target(sampler):
    pair, w, random = worlds.classes(1), 3.0, torch.Generator().manual_seed(0)
    grid = optimal.GridTarget(pair, w, spacing=0.06)
    sigmas = [s for s in SIGMAS if s == 0 or s > 0.06]
    x = chains.SAMPLERS[sampler](grid.denoise, chains.noise((1500, 2), random), sigmas, random)
    target = grid.sample(1500, random)
    floor = measure.sliced_wasserstein(grid.sample(1500, random), target)
    cfg = chains.euler(guides.Guide(pair, schedules.constant(w)), chains.noise((1500, 2), random), sigmas)
    assert measure.sliced_wasserstein(x, target) < 2.5 * floor
    assert measure.sliced_wasserstein(cfg, target) > 4 * floor
    assert measure.mode_error(x, pair.cond, grid.component_mass(pair.cond)) < 0.06


def test_exact_field_guidance_follows_the_exact_flow():
    """Of a Gaussian the flow keeps every coefficient at the same number of standard deviations from its mean."""
    pair, w, random = fields.field(0, 0.6, n=8), 3.0, torch.Generator().manual_seed(0)
    target = optimal.gaussian_target(pair, w)
    start = chains.noise((8, 8, 8), random)
    mean, variance = target.centres[0], target.variances[0]
    exact = mean + (variance / (variance + chains.SIGMA_MAX**2)).sqrt() * (target.rotate(start)[:, 0] - mean)

    def error(steps):
        x = chains.euler(target.denoise, start, chains.karras(steps))
        return (target.rotate(x)[:, 0] - exact).square().mean().sqrt().item()

    assert error(640) < error(40) / 8 < 0.005


def test_field_distance_is_the_distance_of_two_gaussians():
    target = fields.field(0, 0.3, n=8).cond
    start = chains.noise((16, 8, 8), torch.Generator().manual_seed(0))
    z = fields.hartley(start) / chains.SIGMA_MAX
    shift, stretch = 0.3, 1.2
    deviation = target.variances[0].sqrt().view(8, 8)
    samples = fields.hartley(stretch * deviation * z + target.centres[0].view(8, 8)) + shift
    expected = shift**2 + (0.2 * deviation).square().mean().item()
    assert measure.field_distance(start, samples, target) == pytest.approx(expected**0.5, rel=0.02)
