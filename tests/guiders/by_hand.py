"""REG written out on the tiny network: its formulas and plain autograd, nothing of ComfyUI's sampling or of the pack.

Predictions are functions x -> D(x), [batch, ...]; sigma and alpha are numbers, or [batch, 1, 1, 1].
"""

import torch

from pack.guiders.options import Options

STEP = 0.001  # of the differences, small enough for what is compared here

EVERY_KIND = [
    Options("elementwise", "backward"),
    Options("elementwise", "difference", step=STEP),
    Options("jacobian", "backward"),
    Options("jacobian", "difference", step=STEP),
    Options("ratio", step=STEP),
]


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


def step(options, conditional, unconditional, guided, x, alpha):
    """D_c + R(D_guided − D_c), with `guided(D_c, D_u)` for D_guided."""
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone()
        d_cond, d_uncond = conditional(x), unconditional(x)
        g = guided(d_cond, d_uncond) - d_cond
        with torch.enable_grad():
            return d_cond + rectified(options, conditional, unconditional, x, g, d_cond - d_uncond, alpha)


def rectified(options, conditional, unconditional, x, g, delta, alpha):
    """R(g)."""
    product = pulled_back if options.estimator == "backward" else pushed_forward
    if options.rectification == "elementwise":
        return alpha * product(conditional, x, torch.ones_like(x)) * g
    if options.rectification == "jacobian":
        return alpha * product(conditional, x, g)
    rho = (dot(g, pushed_forward(conditional, x, g)) / dot(g, pushed_forward(unconditional, x, g))).clamp(0, 1)
    w = dot(g, delta) / dot(delta, delta)
    return rho / (1 + w * (1 - rho)) * g


def assert_same(answer, expected, guidance, tolerance=0.01):
    """Equal up to a share of the guidance."""
    assert (answer - expected).norm() <= tolerance * guidance.norm(), float(
        (answer - expected).norm() / guidance.norm()
    )
