"""The worlds' closed forms against autograd, sampling and quadrature."""

import pytest
import torch

from pack.lab import fields, worlds

SIGMAS = [0.05, 0.4, 2.0, 20.0]
WORLDS = {
    "line": worlds.paper_line().cond,
    "plane": worlds.classes(0).uncond,
    "five dimensions": worlds.classes(1, dimension=5).cond,
    "weak": worlds.weakened(2).uncond,
    "field": fields.field(0, 0.3, n=6).cond,
    "fields": fields.mixed_field(0, 0.3, n=6).uncond,
}


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noisy(mixture, sigma, random, n=50):
    x0 = mixture.sample(n, random)
    return x0 + sigma * torch.randn(x0.shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density(name, sigma, random):
    mixture = WORLDS[name]
    x = noisy(mixture, sigma, random).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x, sigma), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_denoiser_obeys_tweedie(name, sigma, random):
    mixture = WORLDS[name]
    x = noisy(mixture, sigma, random)
    torch.testing.assert_close(mixture.denoise(x, sigma), x + sigma**2 * mixture.score(x, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_jacobian_product_is_autograds(name, sigma, random):
    mixture = WORLDS[name]
    x = noisy(mixture, sigma, random, n=20)
    v = torch.randn(x.shape, generator=random, dtype=torch.float64)
    forward = torch.func.jvp(lambda x: mixture.denoise(x, sigma), (x,), (v,))[1]
    _, pull_back = torch.func.vjp(lambda x: mixture.denoise(x, sigma), x)
    torch.testing.assert_close(mixture.product(x, sigma, v), forward, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.product(x, sigma, v), pull_back(v)[0], rtol=1e-8, atol=1e-8)


def test_whole_jacobian_is_autograds(random):
    mixture = worlds.classes(3, dimension=3).uncond
    x = noisy(mixture, 0.7, random)
    auto = torch.func.vmap(torch.func.jacrev(lambda p: mixture.denoise(p[None], 0.7)[0]))(x)
    torch.testing.assert_close(mixture.jacobian(x, 0.7), auto, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one_and_has_the_mixtures_moments():
    mixture = worlds.classes(4).uncond
    axis = torch.arange(-12, 12, 0.05, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    mass = mixture.log_density(points).exp() * 0.05**2
    weights, means = mixture.log_weights.exp(), torch.einsum("kd,ked->ke", mixture.centres, mixture.axes)
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(mass @ points, weights @ means, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", WORLDS)
def test_samples_have_the_denoiser_of_pure_noise_as_their_mean(name, random):
    mixture, n = WORLDS[name], 20000
    samples = mixture.sample(n, random)
    mean = mixture.denoise(torch.zeros_like(samples[:1]), 1e6)[0]
    assert ((samples.mean(0) - mean).abs() < 5 * samples.std(0) / n**0.5).all()


def test_posterior_samples_average_to_the_denoiser(random):
    mixture = worlds.classes(5).uncond
    x = noisy(mixture, 0.8, random, n=4).repeat_interleave(20000, 0)
    draws = mixture.sample_posterior(x, 0.8, random).view(4, 20000, 2)
    deviation = (draws.mean(1) - mixture.denoise(x[::20000], 0.8)).abs()
    assert (deviation < 5 * draws.std(1) / 20000**0.5).all()


def test_hartley_is_orthonormal_and_its_own_inverse(random):
    x = torch.randn(3, 7, 8, generator=random, dtype=torch.float64)
    torch.testing.assert_close(fields.hartley(fields.hartley(x)), x)
    torch.testing.assert_close(fields.hartley(x).square().sum(), x.square().sum())


def test_fields_have_unit_variance_and_their_spectrum(random):
    mixture = fields.field(0, 0.3, n=16).uncond
    samples = mixture.sample(4000, random)
    power = fields.hartley(samples).square().mean(0).flatten()
    assert samples.var().item() == pytest.approx(1, abs=0.02)
    assert (power / mixture.variances[0]).sub(1).abs().max() < 6 * (2 / 4000) ** 0.5


def test_bayes_pairs_hold_their_class():
    pair = worlds.classes(6)
    share = pair.uncond.log_weights.exp()[:2].sum()
    x = pair.cond.sample(200, torch.Generator().manual_seed(0))
    assert (pair.uncond.log_density(x) >= pair.cond.log_density(x) + share.log() - 1e-9).all()
