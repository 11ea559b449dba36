"""Identities of the rectifications, and the ratio against Gaussians, where it is exact."""

from types import SimpleNamespace

import pytest
import torch

from pack.reg import per_sample, rectification
from pack.reg.profile import Profile
from pack.reg.rectification import RECTIFICATIONS

SHAPES = [(2, 5), (2, 3, 4), (2, 3, 4, 4), (2, 1, 2, 3, 3)]
every_rank = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@every_rank
def test_blend(shape):
    d, g, r = (draw(shape, seed) for seed in range(3))
    assert torch.equal(rectification.blend(d, g, r, 0.0), d + g)
    assert torch.equal(rectification.blend(d, g, r, 1.0), d + r)
    torch.testing.assert_close(rectification.blend(d, g, r, 2.5), d + (1 - 2.5) * g + 2.5 * r)


def test_the_elementwise_factor_scales_with_alpha():
    jt_ones = draw((2, 3), 0)
    assert torch.equal(rectification.elementwise_factor(jt_ones, torch.tensor([[0.5], [1.0]]))[0], 0.5 * jt_ones[0])


@every_rank
def test_gain(shape):
    g = draw(shape, 0)
    orthogonal = draw(shape, 1)
    orthogonal = orthogonal - per_sample.dot(orthogonal, g) / per_sample.dot(g, g) * g
    assert torch.allclose(rectification.gain(g, 0.3 * g + orthogonal), torch.tensor(0.3, dtype=g.dtype))
    assert torch.equal(rectification.gain(g, 3 * g), torch.ones_like(per_sample.dot(g, g)))
    assert torch.equal(rectification.gain(g, -g), torch.zeros_like(per_sample.dot(g, g)))
    assert torch.equal(rectification.gain(0 * g, orthogonal), torch.ones_like(per_sample.dot(g, g)))


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("w", [-0.5, 0.5, 2.0, 7.0])
def test_ratio_is_exact_for_isotropic_gaussians(sigma, w):
    """p(x0|y) = N(m, a²), p(x0) = N(0, b²): the target p(x0|y)^(1+w) p(x0)^−w is Gaussian, and so is its denoiser."""
    a, b, n = 0.6, 1.3, 6
    m, x = draw((1, n), 0), 2 * draw((3, n), 1)

    def denoise(mean, std, x):
        return mean + std**2 / (std**2 + sigma**2) * (x - mean)

    precision = (1 + w) / a**2 - w / b**2
    exact = denoise((1 + w) * m / a**2 / precision, precision**-0.5, x)
    cond, uncond = denoise(m, a, x), denoise(0 * m, b, x)
    g = w * (cond - uncond)
    rho = rectification.jacobian_ratio(g, a**2 / (a**2 + sigma**2) * g, b**2 / (b**2 + sigma**2) * g)
    factor = rectification.ratio_factor(rho, rectification.weight(g, cond, uncond))
    torch.testing.assert_close(cond + factor * g, exact, rtol=1e-6, atol=1e-6)


def test_ratio_is_identity_where_the_models_agree_and_without_guidance():
    shape = (3, 4)
    g, j = draw(shape, 0), draw(shape, 1)
    assert torch.equal(rectification.jacobian_ratio(g, g, g), torch.ones(3, 1, dtype=g.dtype))
    assert torch.equal(rectification.jacobian_ratio(0 * g, 0 * g, 0 * g), torch.ones(3, 1, dtype=g.dtype))
    assert torch.equal(rectification.weight(0 * g, j, j), torch.zeros(3, 1, dtype=g.dtype))
    rho = torch.linspace(0, 1, 100, dtype=g.dtype)[:, None]
    assert torch.equal(rectification.ratio_factor(torch.ones_like(rho), 7.0), torch.ones_like(rho))
    torch.testing.assert_close(rectification.ratio_factor(rho, -1.0), torch.ones_like(rho))


@pytest.mark.parametrize("w", [-5.0, -1.0, -0.3, 0.0, 3.0, 100.0])
def test_ratio_never_amplifies_and_is_never_nan(w):
    nan, inf = float("nan"), float("inf")
    odd = torch.tensor([[0.0], [1.0], [-3.0], [nan], [inf], [1e-30]])
    for wide in (odd, 0 * torch.ones_like(odd), -odd):
        rho = rectification.jacobian_ratio(torch.ones_like(odd), odd, wide)
        factor = rectification.ratio_factor(rho, w)
        assert ((rho >= 0) & (rho <= 1)).all()
        assert ((factor >= 0) & (factor <= 1)).all()


@every_rank
def test_ratio_does_not_mind_flips_scale_and_order(shape):
    g, c, u = draw(shape, 0), draw(shape, 1), draw(shape, 2)
    c, u = c.abs() * g, (c.abs() + u.abs()) * g
    rho = rectification.jacobian_ratio(g, c, u)
    flip = lambda t: t.flip(-1)  # noqa: E731
    torch.testing.assert_close(rectification.jacobian_ratio(flip(g), flip(c), flip(u)), rho)
    torch.testing.assert_close(rectification.jacobian_ratio(8 * g, 8 * c, 8 * u), rho)
    assert torch.equal(rectification.jacobian_ratio(*(t.flip(0) for t in (g, c, u))), rho.flip(0))


@every_rank
def test_a_batch_of_two_is_two_singles_bit_for_bit(shape):
    d, g, r = (draw(shape, seed, torch.float32) for seed in range(3))
    together = [
        rectification.blend(d, g, r, 0.7),
        rectification.gain(g, r),
        rectification.weight(g, d, r),
        rectification.jacobian_ratio(g, d, r),
    ]
    for i in range(2):
        one = [t[i : i + 1] for t in (d, g, r)]
        alone = [
            rectification.blend(*one, 0.7),
            rectification.gain(one[1], one[2]),
            rectification.weight(one[1], one[0], one[2]),
            rectification.jacobian_ratio(one[1], one[0], one[2]),
        ]
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[i : i + 1], part)


@pytest.mark.parametrize("w", [0.0, 3.0, 7.0])
def test_a_profile_averages_the_ratios_factor(w):
    """Samples whose ρ is .2 and .8, half of each: the mean of f = ρ / (1 + w (1 − ρ)), not f of their mean .5."""
    one = torch.ones(2)
    profile = Profile(torch.tensor([0.1, 10.0]), one[:, None], one, 0.5 * one, one, spread=0.3 * one)
    delta = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(delta)
    step = SimpleNamespace(
        x=zero, sigma=torch.ones(3), guidance=w * delta, d_cond=delta, d_uncond=zero, mask=None, alpha=1.0
    )
    rule = RECTIFICATIONS["ratio"]
    expected = (0.2 / (1 + w * 0.8) + 0.8 / (1 + w * 0.2)) / 2
    torch.testing.assert_close(rule.reuse(rule.from_profile(profile, step), step), expected * w * delta)


@every_rank
def test_the_weight_is_that_of_what_is_guided(shape):
    """DiT's guidance moves three of four channels: there w is the scale that was set, whatever lies beside."""
    d_cond, d_uncond = draw(shape, 0), draw(shape, 1)
    guided = (torch.arange(shape[1]) > 0).to(d_cond).view(-1, *[1] * (len(shape) - 2))
    if guided.any():
        w = rectification.weight(4.0 * (d_cond - d_uncond) * guided, d_cond, d_uncond)
        torch.testing.assert_close(w, torch.full_like(w, 4.0))
    assert not rectification.weight(0 * d_cond, d_cond, d_uncond).any()


def test_the_weight_is_that_of_what_is_free():
    delta = draw((1, 3, 4, 4), 0)
    mask = (torch.arange(4) >= 2).double().expand(1, 1, 4, 4)
    step = SimpleNamespace(
        guidance=torch.where(mask > 0, 3.0, 1.0) * delta, d_cond=delta, d_uncond=0 * delta, mask=mask
    )
    torch.testing.assert_close(rectification.weight_of(step), torch.full((1, 1, 1, 1), 3.0, dtype=delta.dtype))


def test_what_cannot_be_compared_leaves_the_guidance():
    """An unconditional posterior of negative width is none."""
    g = torch.ones(1, 4)
    assert rectification.jacobian_ratio(g, -0.5 * g, -g).item() == 1


def test_what_is_clamped_says_nothing_and_a_negative_map_does():
    ones = torch.ones(2, 1, 1, 1)
    assert not RECTIFICATIONS["ratio"].is_informative(ones) and not RECTIFICATIONS["jacobian"].is_informative(ones)
    assert RECTIFICATIONS["elementwise"].is_informative(-ones)


def test_from_pure_noise_a_ratio_is_kept_as_it_is():
    rho = torch.full((1, 1), 0.4)
    assert torch.equal(RECTIFICATIONS["ratio"].carried(rho, torch.full((1, 1), torch.inf)), rho)
