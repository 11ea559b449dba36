"""Runs of a family through ComfyUI's guider and sampling, in inference mode, as a prompt does.

Nested latents are packed inside ComfyUI's samplers, and so are the tensors of `predictions`.
"""

from collections.abc import Callable

import comfy.samplers
import torch
from torch import Tensor

from .family import Family

PERCENT = 0.5  # of the model's schedule: where predictions are looked at


@torch.inference_mode()
def sample(family: Family, model, sampler, sigmas: Tensor, *, positive=1, negative=2, cfg=3.0, seed=0):
    """What the sampler makes of noise, or of the latent the family starts from; prompts are named by their seeds."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(family.conditioning(positive), family.conditioning(negative))
    guider.set_cfg(cfg)
    start, noise, mask = (
        family.latent(5) * (family.starts_from_latent or family.masked),
        family.latent(seed),
        family.mask(),
    )
    return guider.sample(noise, start, sampler, sigmas, mask, seed=seed, disable_pbar=True)


def euler(family: Family, model, steps: int, **options):
    """A whole run."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    return sample(family, model, comfy.samplers.sampler_object("euler"), sigmas, **options)


def predictions(family: Family, model, latents: Callable, cfg: float) -> list[Tensor]:
    """The guided predictions at each of latents(x), in one run; x is the noisy latent at half of the schedule.

    A mask is applied by ComfyUI around them.
    """

    def evaluate(denoise, x, sigmas, extra_args=None, **_):
        sigma, (guider, options) = sigmas[0] * x.new_ones(len(x)), (denoise.inner_model, extra_args["model_options"])
        out.extend(guider(at, sigma, options, extra_args["seed"]) for at in latents(x))
        return x

    out = []
    sample(family, model, comfy.samplers.KSAMPLER(evaluate), torch.tensor([sigma_of(model), 0.0]), cfg=cfg)
    return out


def free_part(family: Family, model) -> Tensor | float:
    """1 where the latent is free to change, 0 where it is given, in the shape of x; 1 without a mask."""

    def look(denoise, x, sigmas, extra_args=None, **_):
        seen.append(extra_args["denoise_mask"])
        return x

    seen = []
    sample(family, model, comfy.samplers.KSAMPLER(look), torch.tensor([sigma_of(model), 0.0]), cfg=1.0)
    return 1.0 if seen[0] is None else seen[0].clone()


def sigma_of(model) -> float:
    return float(model.get_model_object("model_sampling").percent_to_sigma(PERCENT))


def alpha_of(model) -> float:
    """What multiplies the clean latent in the noisy one."""
    scaling = model.get_model_object("model_sampling").noise_scaling
    return scaling(torch.tensor([sigma_of(model)]), torch.zeros(1, 1), torch.ones(1, 1)).item()


def parts(latent) -> list[Tensor]:
    """The tensors of a latent that may be nested."""
    return latent.unbind() if latent.is_nested else [latent]
