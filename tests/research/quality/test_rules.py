"""What the rules that are not in the product make of a model, against their formulas and autograd, step by step."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.sample
import comfy.samplers
import numpy as np
import torch

from pack.demo import models
from pack.research.quality import cells, peers, rules

CFG = 3.0


@dataclass
class Step:
    """One step of a chain; `before` is what an earlier step left for this one."""

    at: object  # sigma -> (x -> D_c(x), x -> D_u(x))
    sigma: float
    after: float  # the next
    x: torch.Tensor
    time: float  # 1 at the highest noise to 0 at the lowest, in log sigma
    before: torch.Tensor | None

    def __post_init__(self):
        self.cond, self.uncond = self.at(self.sigma)
        self.d_cond, self.d_uncond = self.cond(self.x).detach(), self.uncond(self.x).detach()
        self.delta = self.d_cond - self.d_uncond
        self.g = (CFG - 1) * self.delta

    def pulled_back(self, v):
        """Jᵀv, J = ∂D_c/∂x."""
        leaf = self.x.clone().requires_grad_(True)
        return torch.autograd.grad(self.cond(leaf), leaf, v)[0]


def differenced(function, x, v, h=0.02):
    """Jv by a central difference."""
    h = h * (x.square().mean() / v.square().mean()).sqrt()
    return ((function(x + h * v) - function(x - h * v)) / (2 * h)).detach()


def another(step):
    return step.roll(1, 0)


def apg(step):
    """Without the part along D_c, over a running sum: arXiv 2410.02416, scaled by cfg as in ComfyUI."""
    total = step.delta if step.before is None else step.delta - 0.5 * step.before
    unit = step.d_cond / step.d_cond.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    along = (total * unit).sum((1, 2, 3), keepdim=True) * unit
    return CFG * (total - along), total


def characteristic(step):
    """D_c(x + wΔ) where Δ = D_c(x + wΔ) − D_u(x + (1 + w)Δ), after five damped iterations: arXiv 2312.07586."""
    delta = 0 * step.x
    for _ in range(5):
        delta = delta + (step.cond(step.x + (CFG - 1) * delta) - step.uncond(step.x + CFG * delta)).detach() / CFG
    return step.cond(step.x + (CFG - 1) * delta).detach() - step.d_cond, None


def rectified_cfg(step):
    """The slope of x is that of D_c and w times the slopes' difference, half a step ahead along D_c: arXiv 2510.07631."""
    half = (step.sigma + step.after) / 2
    ahead = step.x + (half - step.sigma) * (step.x - step.d_cond) / step.sigma
    cond, uncond = (f(ahead).detach() for f in step.at(half))
    return (CFG - 1) * (cond - uncond) / half * step.sigma, None


def spectral(step):
    """Each ring of the spectrum times ρ / (1 + w (1 − ρ)), ρ = ⟨g, J_c g⟩ / ⟨g, J_u g⟩ in the ring, or 1."""
    narrow, wide = (differenced(f, step.x, step.g) for f in (step.cond, step.uncond))
    g, narrow, wide = (torch.fft.fft2(v.double()) for v in (step.g, narrow, wide))
    cycles = torch.tensor([min(i, 64 - i) for i in range(64)]).double()
    radius = (cycles[:, None] ** 2 + cycles**2).sqrt()
    edges = [0.5, *(2 ** (5 * k / 7) for k in range(1, 7)), 1e9]  # even steps of log |k| up to 32 cycles, and the mean
    scaled = torch.zeros_like(g)
    for low, high in pairwise([-1, *edges]):
        ring = (radius >= low) & (radius < high)
        of_cond, of_uncond = (((g * v.conj()).real * ring).sum((1, 2, 3), keepdim=True) for v in (narrow, wide))
        rho = torch.where(of_uncond > 0, of_cond / of_uncond, 1.0).clamp(0, 1)
        scaled += ring * g * rho / (1 + (CFG - 1) * (1 - rho))
    return torch.fft.ifft2(scaled).real.float(), None


ADDED = {  # rule: step -> what is added to D_c, and what is left for the next step
    "cfg": lambda s: (s.g, None),
    "broken: elementwise of another": lambda s: (s.pulled_back(torch.ones_like(s.x)).roll(1, 0) * s.g, None),
    "broken: elementwise, wrong sign": lambda s: (2 * s.g - s.pulled_back(torch.ones_like(s.x)) * s.g, None),
    "broken: jacobian of another": lambda s: (s.pulled_back(s.g).roll(1, 0), None),
    "broken: jacobian, wrong sign": lambda s: (2 * s.g - s.pulled_back(s.g), None),
    "jacobian natural": lambda s: (s.cond(s.x + s.g).detach() - s.d_cond, None),
    "c2fg": lambda s: ((CFG * np.exp(-s.time) - 1) * s.delta, None),
    "apg": apg,
    "apg + elementwise": lambda s: ((a := apg(s))[0] * s.pulled_back(torch.ones_like(s.x)), a[1]),
    "linear": lambda s: (2 * (CFG - 1) * (1 - s.time) * s.delta, None),
    "characteristic": characteristic,
    "rectified-cfg++": rectified_cfg,
    "spectral ratio": spectral,
}


def by_hand(weights, cell, rule):
    """The latents of a cell by Euler steps of the rule's formula."""
    model = models.load(weights)[0]  # outside inference mode, for autograd
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", cell.steps).tolist()
    tokens = [cells.conditioning([prompt])[0][0].expand(cell.batch, -1, -1) for prompt in (cell.prompt, "")]
    noise = comfy.sample.prepare_noise(torch.zeros(cell.batch, 3, 64, 64), cell.seed)
    x, left = sampling.noise_scaling(torch.tensor(sigmas[0]), noise, torch.zeros_like(noise), True), None

    def denoise(context, sigma, x):
        return model.model.apply_model(x, torch.full([len(x)], sigma), c_crossattn=context, transformer_options={})

    low, high = sampling.sigma_min.item(), sampling.sigma_max.item()
    for sigma, after in pairwise(sigmas):
        time = np.log(sigma / low) / np.log(high / low)
        step = Step(lambda s: [partial(denoise, context, s) for context in tokens], sigma, after, x, time, left)
        added, left = ADDED[rule](step)
        x = x + (x - step.d_cond - added) / sigma * (after - sigma)
    return x


@pytest.mark.parametrize("rule", ADDED)
def test_whole_chains_are_the_formulas(studio, cell, rule):
    expected = by_hand(studio.weights, cell(), rule)
    found, plain = studio.latents(cell(rule=rule)), studio.latents(cell())
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-3
    assert rule == "cfg" or (plain - expected).norm() / expected.norm() > 10 * error


def test_gibbs_like_guidance_evaluates_as_often_as_cfg(studio, cell):
    plain, found = (studio.sample(cell(rule=rule, steps=10)) for rule in ("cfg", "gibbs-like"))
    assert found.forward == plain.forward == 20


def test_a_round_of_gibbs_like_guidance_starts_at_its_noise(studio):
    sigmas = peers.part(studio.model.get_model_object("model_sampling"), 4, peers.RENEWED)
    assert len(sigmas) == 5 and sigmas[0] == pytest.approx(peers.RENEWED, rel=0.02) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_adaptive_guidance_stops_where_the_noises_agree(studio, cell, monkeypatch):
    monkeypatch.setattr(rules, "ALIGNED", -1.0)  # at once
    assert studio.sample(cell(rule="adaptive")).forward == 2 + 1
    monkeypatch.setattr(rules, "ALIGNED", 1.0)  # never
    plain, adaptive = studio.sample(cell()), studio.sample(cell(rule="adaptive"))
    assert np.array_equal(plain.pictures, adaptive.pictures) and adaptive.forward == 4


def test_autoguidance_by_the_model_itself_is_no_guidance(studio, cell, monkeypatch):
    monkeypatch.setattr(cells, "weak_model", lambda: models.load(studio.weights)[0])
    none, auto = studio.sample(cell(rule="none")), studio.sample(cell(rule="autoguidance"))
    assert np.abs(none.pictures.astype(int) - auto.pictures).max() <= 1


def test_broken_rules_break_nothing_else(studio, cell):
    before = studio.sample(cell(rule="jacobian")).pictures
    studio.sample(cell(rule="broken: jacobian of another"))
    assert np.array_equal(studio.sample(cell(rule="jacobian")).pictures, before)
