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


def step(options, conditional, unconditional, guided, x, alpha, forward=pushed_forward, mask=1.0):
    """D_c + R(D_guided − D_c), with `guided(D_c, D_u)` for D_guided, `forward` for Jv, and `mask` 1 where x is free."""
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()
        d_cond, d_uncond = conditional(x), unconditional(x)
        g = guided(d_cond, d_uncond) - d_cond
        delta = d_cond - d_uncond
        return d_cond + rectified(options, conditional, unconditional, x, g, delta, alpha, forward, mask)


def rectified(options, conditional, unconditional, x, g, delta, alpha, forward, mask=1.0):
    """R(g)."""
    with torch.enable_grad():
        measured = measure(options, conditional, unconditional, x, g, alpha, forward, mask)
    return alpha * measured if options.rectification == "jacobian" else reuse(options, measured, g, delta, mask)


def measure(options, conditional, unconditional, x, g, alpha, forward=pushed_forward, mask=1.0):
    """elementwise α Jᵀm, jacobian Jᵀ(m g), ratio ρ along m g."""
    product = pulled_back if options.estimator == "backward" else forward
    if options.rectification == "elementwise":
        return alpha * product(conditional, x, mask * torch.ones_like(x))
    g = mask * g
    if options.rectification == "jacobian":
        return product(conditional, x, g)
    return (dot(g, forward(conditional, x, g)) / dot(g, forward(unconditional, x, g))).clamp(0, 1)


def kept(options, measured, g, alpha, mask=1.0):
    """What stands for a measurement in later steps: of the whole chain rule, its gain along the guidance."""
    if options.rectification != "jacobian":
        return measured
    return (dot(alpha * measured, mask * g) / dot(mask * g, mask * g)).clamp(0, 1)


def reuse(options, value, g, delta, mask=1.0):
    """R(g) of what was kept."""
    if options.rectification != "ratio":
        return value * g
    w = dot(mask * g, mask * delta) / dot(mask * delta, mask * delta)
    return value / (1 + w * (1 - value)) * g


def assert_same(answer, expected, guidance, tolerance=0.01):
    """Equal up to a share of the guidance."""
    assert (answer - expected).norm() <= tolerance * guidance.norm(), float(
        (answer - expected).norm() / guidance.norm()
    )


class Guider(comfy.samplers.CFGGuider):
    """CFG on the tiny network, with the formula in the part of the schedule that the options name.

    It draws no random numbers and hides none, and post-CFG hooks see the true unconditional prediction. It measures at
    every evaluation for refresh = 1, and else at the steps of the sampler that `refresh` names, counted by its callback,
    from the first one that says something.

    Args:
        mask: sigma -> 1 where the latent is free to change, 0 where it is given.
    """

    def __init__(self, model, cfg, options, mask=lambda sigma: 1.0):
        super().__init__(model)
        self.options, self.mask = options, mask
        self.evaluations = self.measurements = 0
        self.set_conds(tiny.POSITIVE, tiny.NEGATIVE)
        self.set_cfg(cfg)

    def sample(self, *args, callback=None, **kwargs):
        self.steps, self.called_back = 0, False  # begun, and as the sampler counts them
        self.measured_at, self.value, self.began, self.noise = [], None, None, None

        def count(i, *rest):
            self.steps, self.called_back = i + 1, True
            if callback is not None:
                callback(i, *rest)

        return super().sample(*args, callback=count, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (ComfyUI's signature)
        self.evaluations += 1
        with torch.inference_mode(False), torch.no_grad():
            x, sigma = x.clone(), timestep.clone()
            d_cond, d_uncond = (self.prediction(text, sigma)(x) for text in (tiny.POSITIVE, tiny.NEGATIVE))
            denoised = self.guided(d_cond, d_uncond)
            if self.in_range(sigma):
                g = denoised - d_cond
                denoised = d_cond + self.rectified(x, sigma, g, d_cond - d_uncond)
        for hook in model_options.get("sampler_post_cfg_function", []):
            denoised = hook({"denoised": denoised, "uncond_denoised": d_uncond, "input": x, "sigma": timestep})
        return denoised

    def rectified(self, x, sigma, g, delta):
        now = self.steps
        if not self.called_back:
            self.steps += 1
        alpha, mask = self.alpha(sigma), self.mask(sigma)
        if self.value is not None and self.value.shape[-1] not in (1, x.shape[-1]):
            self.value, self.measured_at = None, []  # of another size
        if not self.is_due(now):
            return reuse(self.options, self.carried(sigma, alpha), g, delta, mask)
        self.measurements += 1
        denoisers = [self.prediction(text, sigma) for text in (tiny.POSITIVE, tiny.NEGATIVE)]
        with torch.enable_grad():
            measured = measure(self.options, *denoisers, x, g, alpha, mask=mask)
        value = kept(self.options, measured, g, alpha, mask)
        if self.says_something(value) or self.began is None:
            self.value, self.noise = value, (sigma.view(-1, 1, 1, 1) / alpha).log()
        if self.began is None and self.says_something(value):
            self.began = now
        self.measured_at += [now] if self.began is not None else []
        if self.options.rectification == "jacobian":
            return alpha * measured
        return reuse(self.options, self.value, g, delta, mask)

    def says_something(self, value):
        """A map that is 0 everywhere (α = 0), or a number that was clamped, does not."""
        return bool(((value != 0) if self.options.rectification == "elementwise" else (value > 0) & (value < 1)).any())

    def carried(self, sigma, alpha):
        """A map and a gain stand as they are; the odds ρ / (1 − ρ) rise as σ/α falls."""
        if self.options.rectification != "ratio":
            return self.value
        fall = (self.noise - (sigma.view(-1, 1, 1, 1) / alpha).log()).exp()
        odds = self.value / (1 - self.value) * fall
        return torch.where((self.value > 0) & (self.value < 1) & fall.isfinite(), odds / (1 + odds), self.value)

    def is_due(self, now):
        """Since the first: 0, 1, 2, 4, 8, … for refresh = 0, and every n-th for n."""
        if self.options.refresh == 1 or not self.measured_at:
            return True
        if self.options.refresh:
            return now - self.measured_at[-1] >= self.options.refresh
        since, last = now - self.began, self.measured_at[-1] - self.began
        return any(last < power <= since for power in (1, 2, 4, 8, 16, 32))

    def prediction(self, text, sigma):
        return partial(prediction(self.model_patcher, text), sigma=sigma)

    def guided(self, d_cond, d_uncond):
        return d_uncond + self.cfg * (d_cond - d_uncond)

    def in_range(self, sigma):
        to_sigma = self.inner_model.model_sampling.percent_to_sigma
        return to_sigma(self.options.end_percent) <= float(sigma[0]) <= to_sigma(self.options.start_percent)

    def alpha(self, sigma):
        flow = self.inner_model.model_type.name == "FLOW"
        return (1 - sigma).view(-1, 1, 1, 1) if flow else 1.0
