"""The exact guidance by independent methods: quadrature, closed forms, Monte Carlo, the grid."""

import pytest
import torch

from pack.lab import fields, optimal, worlds

DIAGONAL = torch.eye(2, dtype=torch.float64)


def gaussian(mean, covariance) -> worlds.GaussianMixture:
    return worlds.GaussianMixture(torch.ones(1), torch.tensor([mean]), torch.tensor([covariance]))


GAUSSIAN_PAIRS = {
    "line": worlds.Pair(worlds.line([1], [0.7], [0.5]), worlds.line([1], [-0.3], [1.1])),
    "plane": worlds.Pair(
        gaussian([1.0, -0.5], [[0.5, 0.2], [0.2, 0.3]]), gaussian([0.0, 0.2], [[1.2, -0.3], [-0.3, 2.0]])
    ),
}
MIXTURES = {"paper": worlds.paper_line(), "classes": worlds.classes(0), "broad": worlds.broad(1)}


def noisy(pair, sigma, n=12):
    random = torch.Generator().manual_seed(0)
    x0 = pair.cond.sample(n, random)
    return x0 + sigma * torch.randn(x0.shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("name", GAUSSIAN_PAIRS)
@pytest.mark.parametrize("w", [0.5, 3.0])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_quadrature_is_the_closed_form_of_gaussians(name, w, sigma):
    pair = GAUSSIAN_PAIRS[name]
    x = noisy(pair, sigma)
    found = optimal.quadrature(pair, x, sigma, w)
    exact = (optimal.gaussian_target(pair, w).denoise(x, sigma) - pair.cond.denoise(x, sigma)) / sigma**2
    assert found.error.max() < 1e-6
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize("sigma", [0.2, 1.0, 10.0])
def test_monte_carlo_covers_the_quadrature(name, w, sigma):
    pair, random = MIXTURES[name], torch.Generator().manual_seed(1)
    x = noisy(pair, sigma)
    found = optimal.quadrature(pair, x, sigma, w)
    sampled = optimal.monte_carlo(pair, x, sigma, w, 20000, random)
    assert found.error.max() < 1e-6
    assert ((sampled.value - found.value).abs() < 4.5 * sampled.error + 1e-6).all()


def test_quadrature_admits_it_where_the_target_lies_beyond_its_nodes():
    pair, w = GAUSSIAN_PAIRS["line"], 3.0
    x = torch.full((1, 1), 40.0, dtype=torch.float64)
    exact = optimal.gaussian_target(pair, w).denoise(x, 1.0) - pair.cond.denoise(x, 1.0)
    found = optimal.quadrature(pair, x, 1.0, w)
    assert found.error.item() > (found.value - exact).abs().item() > 0.1


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("sigma", [0.03, 0.2, 1.0, 20.0])
def test_grid_denoiser_is_the_quadrature(name, sigma):
    pair, w = MIXTURES[name], 3.0
    x = noisy(pair, sigma)
    found = optimal.quadrature(pair, x, sigma, w)
    exact = pair.cond.denoise(x, sigma) + sigma**2 * found.value
    torch.testing.assert_close(optimal.GridTarget(pair, w).denoise(x, sigma), exact, rtol=0, atol=1e-6)


def test_grid_of_gaussians_has_the_closed_forms_samples_and_masses():
    pair, w = GAUSSIAN_PAIRS["plane"], 2.0
    grid, exact = optimal.GridTarget(pair, w), optimal.gaussian_target(pair, w)
    mean = torch.einsum("kd,ked->e", exact.centres, exact.axes)
    samples = grid.sample(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(grid.mass @ grid.points, mean, rtol=0, atol=1e-6)
    assert ((samples.mean(0) - mean).abs() < 5 * samples.std(0) / 20000**0.5).all()
    assert grid.component_mass(pair.cond).tolist() == pytest.approx([1.0])


def test_field_target_is_the_posterior_mean_of_reweighted_samples():
    pair, sigma, w = fields.field(0, 0.5, n=4), 1.0, 1.0
    x = noisy(pair, sigma, n=3)
    exact = (optimal.gaussian_target(pair, w).denoise(x, sigma) - pair.cond.denoise(x, sigma)) / sigma**2
    sampled = optimal.monte_carlo(pair, x, sigma, w, 40000, torch.Generator().manual_seed(0))
    assert ((sampled.value - exact).abs() < 4.5 * sampled.error).all()


def test_targets_that_cannot_be_normalised_are_refused():
    with pytest.raises(ValueError, match="normalised"):
        optimal.gaussian_target(worlds.Pair(worlds.line([1], [0.0], [1.0]), worlds.line([1], [0.0], [0.5])), 3.0)
    with pytest.raises(ValueError, match="GridTarget"):
        optimal.gaussian_target(worlds.paper_line(), 1.0)
