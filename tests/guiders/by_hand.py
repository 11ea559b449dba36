"""REG written out: its formulas and plain autograd, nothing of the pack.

Predictions are functions x -> D(x), [batch, ...]; alpha is a number, or [batch, 1, 1, 1].
"""

from functools import partial

import comfy.samplers
import torch

from pack.guiders.options import Options
from pack.tests.guiders import tiny

STEP = 0.001  # of the differences, small enough for what is compared here

EVERY_KIND = [  # measured at every evaluation
    Options("elementwise", "backward", refresh=1),
    Options("elementwise", "difference", refresh=1, step=STEP),
    Options("jacobian", "backward", refresh=1),
    Options("jacobian", "difference", refresh=1, step=STEP),
    Options("ratio", refresh=1, step=STEP),
]


class Narrowing(tiny.Network):
    """Its prediction for POSITIVE is narrower than for the other prompts, so that ρ is within (0, 1)."""

    def forward(self, x, t, context=None, **kwargs):
        share = 0.7 - 0.3 * torch.tanh((context[..., 0] + context[..., 2]).mean(1))
        return 0.3 * super().forward(x, t, context, **kwargs) + share.view(-1, 1, 1, 1) * x


def name(options):
    return f"{options.rectification}-{options.estimator}"


def prediction(model, cond):
    """(x, sigma) -> D(x), sigma [batch], as ComfyUI's own classes define it for a model of the tiny network."""
    sampling, network = model.get_model_object("model_sampling"), model.model.diffusion_model

    def denoised(x, sigma):
        text = cond[0][0].expand(len(x), -1, -1)
        out = network(sampling.calculate_input(sigma, x), sampling.timestep(sigma).float(), text)
        return sampling.calculate_denoised(sigma, out, x)

    return denoised


def pulled_back(function, x, v):
    """Jᵀv."""
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(leaf), leaf, v)[0]


def pushed_forward(function, x, v):
    """Jv."""
    return torch.func.jvp(function, (x,), (v,))[1]


def dot(a, b):
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def differenced(function, x, v):
    """Jv by a central difference."""
    h = 0.005 * x.square().mean().sqrt() / v.square().mean().sqrt()
    return (function(x + h * v) - function(x - h * v)) / (2 * h)


def step(options, conditional, unconditional, guided, x, alpha, forward=pushed_forward):
    """D_c + R(D_guided − D_c), with `guided(D_c, D_u)` for D_guided and `forward` for Jv."""
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()
        d_cond, d_uncond = conditional(x), unconditional(x)
        g = guided(d_cond, d_uncond) - d_cond
        with torch.enable_grad():
            return d_cond + rectified(options, conditional, unconditional, x, g, d_cond - d_uncond, alpha, forward)


def rectified(options, conditional, unconditional, x, g, delta, alpha, forward):
    """R(g)."""
    product = pulled_back if options.estimator == "backward" else forward
    if options.rectification == "elementwise":
        return alpha * product(conditional, x, torch.ones_like(x)) * g
    if options.rectification == "jacobian":
        return alpha * product(conditional, x, g)
    rho = (dot(g, forward(conditional, x, g)) / dot(g, forward(unconditional, x, g))).clamp(0, 1)
    w = dot(g, delta) / dot(delta, delta)
    return rho / (1 + w * (1 - rho)) * g


def assert_same(answer, expected, guidance, tolerance=0.01):
    """Equal up to a share of the guidance."""
    assert (answer - expected).norm() <= tolerance * guidance.norm(), float(
        (answer - expected).norm() / guidance.norm()
    )


class Guider(comfy.samplers.CFGGuider):
    """CFG on the tiny network, with the formula in the part of the schedule that the options name.

    It draws no random numbers and hides none, and post-CFG hooks see the true unconditional prediction.
    """

    def __init__(self, model, cfg, options):
        super().__init__(model)
        self.options = options
        self.evaluations = 0
        self.set_conds(tiny.POSITIVE, tiny.NEGATIVE)
        self.set_cfg(cfg)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (ComfyUI's signature)
        self.evaluations += 1
        with torch.inference_mode(False):
            x, sigma = x.clone(), timestep.clone()
            predictions = [
                partial(prediction(self.model_patcher, text), sigma=sigma) for text in (tiny.POSITIVE, tiny.NEGATIVE)
            ]
            d_cond, d_uncond = (d(x).detach() for d in predictions)
            denoised = self.guided(d_cond, d_uncond)
            if self.in_range(sigma):
                denoised = step(self.options, *predictions, self.guided, x, self.alpha(sigma))
        for hook in model_options.get("sampler_post_cfg_function", []):
            denoised = hook({"denoised": denoised, "uncond_denoised": d_uncond, "input": x, "sigma": timestep})
        return denoised

    def guided(self, d_cond, d_uncond):
        return d_uncond + self.cfg * (d_cond - d_uncond)

    def in_range(self, sigma):
        to_sigma = self.inner_model.model_sampling.percent_to_sigma
        return to_sigma(self.options.end_percent) <= float(sigma[0]) <= to_sigma(self.options.start_percent)

    def alpha(self, sigma):
        flow = self.inner_model.model_type.name == "FLOW"
        return (1 - sigma).view(-1, 1, 1, 1) if flow else 1.0
