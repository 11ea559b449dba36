"""Guidance of other papers that changes more than the scale: each patches a MODEL, as the rules do."""

from collections.abc import Callable

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calc_cond_batch
from torch import Tensor

from ...demo import models
from ...guiders.step import alpha

ITERATIONS = 5  # of characteristic guidance
STARTED = 0.4  # share of the steps that Gibbs-like guidance begins with, as in its authors' configuration
ROUNDS = 2
RENEWED = 2.0  # noise of a round over the picture's scale: sigma 1 at EDM2's data of 0.5
FINE = 1000  # steps of the schedule that a round's are taken from


def gibbs_like(model: ModelPatcher, cfg: float) -> ModelPatcher:
    """Sampled without guidance, then noise again and denoised by CFG, twice (CFGiG, Moufad et al., arXiv 2505.21101).

    The steps are divided as in the authors' configuration; together they evaluate the network as often as CFG does.
    """
    sampling = model.get_model_object("model_sampling")

    def sample(executor, noise, latent, sampler, sigmas, *args, **kwargs):
        guider, steps = executor.class_obj, len(sigmas) - 1
        at_first = max(1, round(STARTED * steps))
        in_a_round = max(1, (2 * steps - at_first) // (2 * ROUNDS))
        generator = torch.Generator().manual_seed(int(kwargs.get("seed") or args[-1] or 0) + 1)
        guider.set_cfg(1.0)
        latent = executor(noise, latent, sampler, part(sampling, at_first), *args, **kwargs)
        guider.set_cfg(cfg)
        for _ in range(ROUNDS):
            noise = torch.randn(noise.shape, generator=generator)
            latent = executor(noise, latent, sampler, part(sampling, in_a_round, RENEWED), *args, **kwargs)
        return latent

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "gibbs-like", sample)
    return model


def part(sampling, steps: int, ratio: float | None = None) -> Tensor:
    """Sigmas of so many steps, from all noise or from noise of that ratio to the picture: [steps + 1]."""
    if ratio is None:
        return comfy.samplers.calculate_sigmas(sampling, models.scheduler(sampling), steps)
    fine = comfy.samplers.calculate_sigmas(sampling, models.scheduler(sampling), FINE)[:-1]
    fine = fine[fine <= models.sigma_at(sampling, torch.tensor(ratio))]
    chosen = torch.linspace(0, len(fine) - 1, steps + 1).round().long()[:-1]
    return torch.cat([fine[chosen], torch.zeros(1)])


def characteristic(model: ModelPatcher, cfg: float) -> ModelPatcher:
    """The fixed point of Δ = D_c(x + wΔ) − D_u(x + (1 + w)Δ), damped (Zheng and Lan, arXiv 2312.07586).

    x is counted as the picture plus noise; a flow model's own x is that times 1 − sigma.
    """
    w, sampling = cfg - 1, model.get_model_object("model_sampling")

    def guided(executor, x, sigma, model_options, seed):
        denoise, scale = predictions(executor.class_obj, sigma, model_options), alpha(sampling, sigma, x)
        delta = torch.zeros_like(x)
        for _ in range(ITERATIONS):
            d_c, d_u = denoise("positive", x + scale * w * delta), denoise("negative", x + scale * cfg * delta)
            delta = delta + (d_c - d_u) / cfg
        return denoise("positive", x + scale * w * delta)

    return predicting(model, guided)


def rectified_cfg(model: ModelPatcher, cfg: float) -> ModelPatcher:
    """v_c + w (v_c − v_u), both of the second taken half a conditional step ahead (Rectified-CFG++, arXiv 2510.07631).

    The weight is constant: the authors' program found no difference by a schedule.
    """

    def guided(executor, x, sigma, model_options, seed):
        guider, now = executor.class_obj, sigma.flatten()[0]
        steps = model_options["transformer_options"]["sample_sigmas"]
        after = steps[int((steps - now).abs().argmin()) + 1]
        middle = (now + after) / 2
        d_c = predictions(guider, sigma, model_options)("positive", x)
        ahead = x + (middle - now) * (x - d_c) / now
        denoise = predictions(guider, torch.full_like(sigma, middle), model_options)
        return d_c + (cfg - 1) * (denoise("positive", ahead) - denoise("negative", ahead)) * now / middle

    return predicting(model, guided)


def predictions(guider, sigma: Tensor, model_options: dict) -> Callable[[str, Tensor], Tensor]:
    """(name of the cond, x) -> its prediction at sigma."""
    return lambda name, x: calc_cond_batch(guider.inner_model, [guider.conds[name]], x, sigma, model_options)[0]


def predicting(model: ModelPatcher, guided: Callable) -> ModelPatcher:
    """With a guided prediction in place of CFG's."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "another guidance", guided)
    return model
