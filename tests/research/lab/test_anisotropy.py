"""The table of Gaussians that are not isotropic, against matrices written out."""

import pytest
import torch

from pack.lab import guides, worlds
from pack.reg.rectification import RECTIFICATIONS
from pack.research.lab import anisotropy


def matrices(pair, sigma):
    """J_c and J_u = C (C + sigma²)⁻¹."""
    found = []
    for one in (pair.cond, pair.uncond):
        axes, variances = one.axes[0], one.variances[0]
        covariance = axes @ variances.diag() @ axes.T
        found.append(covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance))))
    return found


@pytest.mark.parametrize("w", [1.0, 7.0])
def test_errors_are_those_of_the_closed_form(w):
    """The exact guidance is J_c [(1+w) J_u − w J_c]⁻¹ g."""
    sigma, seed = 0.5, 3
    pair, random = anisotropy.pair(seed), torch.Generator().manual_seed(1000 + seed)
    jc, ju = matrices(pair, sigma)
    x = pair.cond.sample(anisotropy.POINTS, random)
    x = x + sigma * torch.randn(x.shape, generator=random, dtype=x.dtype)
    g = w * (pair.cond.denoise(x, sigma) - pair.uncond.denoise(x, sigma))
    exact = g @ (jc @ torch.linalg.inv((1 + w) * ju - w * jc)).T
    rho = ((g @ jc * g).sum(1) / (g @ ju * g).sum(1)).clamp(0, 1)[:, None]
    expected = {
        "CFG": g,
        "elementwise": jc.sum(1) * g,
        "jacobian": g @ jc.T,
        "ratio": rho / (1 + w * (1 - rho)) * g,
    }
    rows = {row["rule"]: row for row in anisotropy.measured(seed, w, sigma)}
    for rule, guidance in expected.items():
        off = ((guidance - exact).norm(dim=1) / exact.norm(dim=1)).mean().item()
        assert rows[rule]["off"] == pytest.approx(off, rel=1e-6), rule
    assert rows["ρ"]["sd"] == pytest.approx(rho.std().item(), rel=1e-6)


def test_the_ratio_is_exact_where_the_guidance_is_an_eigendirection():
    """Of both Jacobians, which share their axes; the means differ along one of these."""
    axes = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    variances = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    along = axes[:, 2]
    cond, uncond = (axes @ (variances * k).diag() @ axes.T for k in (1.0, 3.0))
    pair = worlds.Pair(anisotropy.gaussian(along, cond), anisotropy.gaussian(-along, uncond))
    sigma, w = 0.8, 4.0
    x = (2 * along)[None]  # so that both predictions are on that axis
    d_cond, d_uncond = pair.cond.denoise(x, sigma), pair.uncond.denoise(x, sigma)
    step = guides.Step(pair, x, sigma, w, d_cond, d_uncond, w * (d_cond - d_uncond))
    jc, ju = matrices(pair, sigma)
    exact = step.guidance @ (jc @ torch.linalg.inv((1 + w) * ju - w * jc)).T
    torch.testing.assert_close(RECTIFICATIONS["ratio"].measure(step)[0], exact)
