"""What the figures draw, taken out of their artists, against formulas by autograd and the exact guidance by quadrature."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.quiver import Quiver
from scipy import stats

from pack.lab import chains, figures, optimal, worlds

RULES = ("elementwise", "jacobian", "ratio")
W, SEED = 2.0, 13

each_rule = pytest.mark.parametrize("rule", RULES)


def denoise(mixture, x, sigma):
    """Tweedie's formula, by autograd."""
    (score,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x, create_graph=True)
    return x + sigma**2 * score


def dot(a, b):
    return (a * b).sum(-1, keepdim=True)


def term(rule, pair, x, sigma, w=W):
    """What a rule adds to D_c, [points, d]."""
    if rule == "none":
        return torch.zeros_like(x)
    if rule == "exact":
        return sigma**2 * optimal.quadrature(pair, x, sigma, w, nodes=48).value
    x = x.clone().requires_grad_()
    d_cond, d_uncond = (denoise(mixture, x, sigma) for mixture in (pair.cond, pair.uncond))
    g = w * (d_cond - d_uncond).detach()

    def pulled_back(d, v):
        return torch.autograd.grad(d, x, v, retain_graph=True)[0]

    if rule == "elementwise":
        return pulled_back(d_cond, torch.ones_like(x)) * g
    if rule == "jacobian":
        return pulled_back(d_cond, g)
    if rule == "ratio":
        rho = (dot(g, pulled_back(d_cond, g)) / dot(g, pulled_back(d_uncond, g))).clamp(0, 1)
        return rho / (1 + w * (1 - rho)) * g
    return g


def assert_same(drawn, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(drawn), expected.numpy(), rtol=tolerance, atol=tolerance)


def drawn_in(axes, kind):
    """The one artist of that kind."""
    (artist,) = [artist for artist in axes.collections if type(artist) is kind]
    return artist


def panels(figure):
    """Axes by the first line of their titles."""
    return {axes.get_title().split("\n")[0]: axes for axes in figure.axes if axes.get_title()}


@each_rule
def test_curves_are_the_guidance_terms(rule):
    figure = figures.curves(w=W, rectification=rule, count=3)
    shown = panels(figure)
    assert len(shown) == 3
    for sigma, axes in zip(np.geomspace(0.08, 6, 3), shown.values(), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for name in ("cfg", rule, "exact"):
            x, y = (torch.tensor(np.array(v)).flatten()[::37] for v in lines[figures.NAMES[name]].get_data())
            assert_same(y, term(name, worlds.paper_line(), x[:, None], sigma)[:, 0] / sigma**2)


def test_the_error_map_has_the_distances_to_the_exact_prediction():
    rules = ("none", "cfg", "elementwise")
    figure = figures.error_map(w=W, rules=rules)
    sigmas, z = np.geomspace(0.05, 10, 60), torch.linspace(-3, 3, 121).double()
    for rule in rules:
        shown = drawn_in(panels(figure)[figures.NAMES[rule]], QuadMesh).get_array().reshape(60, 121)
        for row in (3, 30, 58):
            sigma = sigmas[row]
            x = 1 + z[::20, None] * (0.25 + 0.0625 + sigma**2) ** 0.5  # mean and variance of the noisy conditional
            terms = [term(name, worlds.paper_line(), x, sigma) for name in (rule, "exact")]
            assert_same(shown[row, ::20], (terms[0] - terms[1]).abs()[:, 0])


@each_rule
def test_arrows_are_the_terms_on_one_scale_and_cut(rule):
    sigma = 0.7
    figure = figures.arrows(w=W, sigma=sigma, rules=("cfg", rule), seed=SEED)
    arrows = {name: drawn_in(panels(figure)[figures.NAMES[name]], Quiver) for name in ("exact", "cfg", rule)}
    x = torch.tensor(np.array(arrows["exact"].XY))
    cell = np.diff(np.unique(np.round(x[:, 0].numpy(), 9))).min()
    exact = term("exact", worlds.classes(SEED), x, sigma)
    scale = 1.5 * cell / exact.norm(dim=-1).max()  # the longest exact arrow is one and a half cells long
    for name, drawn in arrows.items():
        expected = scale * term(name, worlds.classes(SEED), x, sigma)
        expected = expected * (4 * cell / expected.norm(dim=-1, keepdim=True)).clamp(max=1)
        assert_same(np.stack([drawn.U, drawn.V], -1), expected, 1e-4)


def euler(rule, pair, x, steps, w=W):
    """Karras' levels and Euler's steps, written out."""
    high, low, ramp = 80 ** (1 / 7), 0.03 ** (1 / 7), np.linspace(0, 1, steps)
    for sigma, after in pairwise([*(high + ramp * (low - high)) ** 7, 0.0]):
        d_cond = denoise(pair.cond, x.clone().requires_grad_(), sigma).detach()
        x = x + (after - sigma) / sigma * (x - d_cond - term(rule, pair, x, sigma, w))
    return x


def sliced(a, b, angles=180):
    """Sliced 2-Wasserstein distance in the plane: quantiles along even angles."""
    theta = np.arange(angles) * np.pi / angles
    share = (np.arange(2000) + 0.5) / 2000
    a, b = (np.quantile(points.numpy() @ [np.cos(theta), np.sin(theta)], share, axis=0) for points in (a, b))
    return np.sqrt(((a - b) ** 2).mean())


def told(axes):
    return float(re.search(r"distance ([\d.]+)", axes.get_title())[1])


def exact_samples(n):
    return optimal.GridTarget(worlds.classes(SEED), W).sample(n, torch.Generator().manual_seed(SEED + 1))


@each_rule
def test_samples_are_the_ends_of_whole_chains(rule):
    figure = figures.samples(w=W, rectification=rule, seed=SEED, count=60, steps=5)
    start = 80 * torch.randn(60, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    for name in ("none", "cfg", rule):
        axes = panels(figure)[figures.NAMES[name]]
        expected = euler(name, worlds.classes(SEED), start, 5)
        assert_same(drawn_in(axes, PathCollection).get_offsets(), expected, 1e-4)
        assert told(axes) == pytest.approx(sliced(expected, exact_samples(240)), rel=0.15)


def test_points_are_drawn_where_they_are_with_their_distance():
    x = exact_samples(300) + torch.tensor([0.6, -0.8])
    (axes,) = figures.points(x, w=W, seed=SEED).axes
    assert_same(drawn_in(axes, PathCollection).get_offsets(), x)
    assert told(axes) == pytest.approx((0.6**2 + 0.8**2) ** 0.5 / 2**0.5, rel=0.15)  # of a shift by 1 in the plane
    assert told(axes) == pytest.approx(sliced(x, exact_samples(4000)), rel=0.15)


def test_what_is_left_is_the_mean_gain_and_its_middle():
    (axes,) = figures.narrowing(w=W, seed=SEED).axes
    pair, random = worlds.classes(SEED), torch.Generator().manual_seed(SEED)
    x0, sigmas = pair.cond.sample(600, random), np.geomspace(0.03, 60, 50)
    noisy = [x0 + s * torch.randn(x0.shape, generator=random, dtype=torch.float64) for s in sigmas]
    bands = dict(zip(RULES, axes.collections, strict=True))
    for rule in RULES:
        (line,) = [line for line in axes.lines if line.get_label() == figures.NAMES[rule]]
        for i in (2, 20, 35, 48):
            g = term("cfg", pair, noisy[i], sigmas[i])
            gains = (dot(term(rule, pair, noisy[i], sigmas[i]), g) / dot(g, g)).clamp(0, 1)[:, 0].numpy()
            assert line.get_ydata()[i] == pytest.approx(gains.mean(), rel=1e-6)
            corners = bands[rule].get_paths()[0].vertices
            edges = sorted(set(np.round(corners[np.isclose(corners[:, 0], sigmas[i]), 1], 9)))
            middle = stats.mstats.mquantiles(gains, [0.05, 0.95], alphap=1, betap=1)
            assert [edges[0], edges[-1]] == pytest.approx(middle.tolist(), abs=1e-6)


def test_figures_belong_to_who_asked_for_them():
    """No pyplot: no window, and no list of figures that grows."""
    made = [figures.curves(count=1), figures.arrows(rules=("cfg",)), figures.error_map(rules=("cfg",))]
    assert all(figure.canvas.manager is None for figure in made)


def test_the_default_levels_are_karras():
    high, low, ramp = 80 ** (1 / 7), 0.03 ** (1 / 7), np.linspace(0, 1, 12)
    assert chains.karras(12) == pytest.approx([*(high + ramp * (low - high)) ** 7, 0.0])


@pytest.mark.parametrize("draw", [figures.curves, figures.arrows])
def test_without_guidance_no_rounding_is_drawn(draw):
    """At cfg 1 every term is 0 but for that."""
    figure = draw(0.0)
    if draw is figures.curves:
        assert all(axes.get_ylim()[1] >= figures.LEAST for axes in figure.axes)
    else:
        arrows = [quiver for axes in figure.axes for quiver in axes.collections if isinstance(quiver, Quiver)]
        assert arrows and max(abs(numbers).max() for quiver in arrows for numbers in (quiver.U, quiver.V)) < 1e-3
