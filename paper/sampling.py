"""DiT's sampler: DDPM's steps, with the variance that the network has learned for them."""

from collections.abc import Callable

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler, trange
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .dit import LEARNED_VARIANCE


def spaced_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """The sigmas of `steps` of the model's timesteps, evenly spaced from the last to the first, and 0: [steps + 1].

    Raises:
        ValueError: the model has no timesteps, or not so many.
    """
    sampling = model.get_model_object("model_sampling")
    count = len(getattr(sampling, "sigmas", ()))
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete) or not 2 <= steps <= count:
        raise ValueError(f"REG: DDPM takes 2 to 1000 of a model's timesteps, not {steps} of {count}: load a DiT.")
    times = [round(i * (count - 1) / (steps - 1)) for i in reversed(range(steps))]
    return torch.cat([sampling.sigmas[times].float().cpu(), torch.zeros(1)])


@torch.no_grad()
def sample_ddpm(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """DDPM with learned variance (Nichol and Dhariwal, arXiv 2102.09672, eq. 15), for latents x = x0 + σ ε.

    From σ to s < σ the mean is D + (s/σ)² (x − D); the variance lies between that of the posterior, (σ² − s²)(s/σ)², and
    that of the process, (σ² − s²)(1 + s²)/(1 + σ²), where the network says, in the logarithm.

    Raises:
        ValueError: the network says nothing of a variance, or the guider has two scales: it evaluates its prompts in
            another order, so that the positive one is not known.
    """
    if hasattr(model.inner_model, "cfg1"):
        raise ValueError("REG: REG DDPM takes the variance of one prompt, and this guider has two: use CFG Guider.")
    extra_args = extra_args or {}
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=extra_args.get("seed"))
    told, extra_args = _listening(extra_args)
    ones, squares = x.new_ones([len(x)]), sigmas.cpu().double() ** 2
    for i in trange(len(sigmas) - 1, disable=disable):
        told.clear()
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if sigmas[i + 1] == 0:
            return denoised
        high, low = squares[i], squares[i + 1]
        posterior, process = (high - low) * low / high, (high - low) * (1 + low) / (1 + high)
        share = (_variance_at(x, sigmas[i] * ones, model, told, extra_args.get("denoise_mask") is not None) + 1) / 2
        deviation = (0.5 * torch.lerp(posterior.log().to(share), process.log().to(share), share)).exp()
        x = denoised + float(low / high) * (x - denoised) + deviation * noise_sampler(sigmas[i], sigmas[i + 1])
    return x


def _listening(extra_args: dict) -> tuple[list, dict]:
    """A list of what the network tells of variances in this run, and the arguments that let it tell."""
    told: list = []
    options = extra_args.get("model_options", {})
    transformer_options = {**options.get("transformer_options", {}), LEARNED_VARIANCE: told.append}
    return told, {**extra_args, "model_options": {**options, "transformer_options": transformer_options}}


def _variance_at(x: Tensor, sigma: Tensor, model, told: list, masked: bool) -> Tensor:
    """What the network said under the positive cond of the latent x, among all that it was asked in this step.

    Guidance has it evaluated under other conds, and REG at other latents. A mask changes x on its way to the network;
    there the first answer is taken, which is that to x.

    Raises:
        ValueError: it said nothing.
    """
    sampling = model.inner_model.inner_model.model_sampling
    scaled = sampling.calculate_input(sigma, x)
    for latents, variances, conds in told:
        rows = len(latents) // len(conds)
        for start in (n * rows for n, cond in enumerate(conds) if cond == 0):
            for first in range(start, start + rows, len(x)):
                if masked or torch.equal(latents[first : first + len(x)], scaled.to(latents)):
                    return variances[first : first + len(x)].float()
    raise ValueError(
        "REG: this model tells no variance of its steps: load a DiT with REG DiT Loader, or sample with ComfyUI's ddpm."
    )


def ddpm(noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None) -> comfy.samplers.KSAMPLER:
    """The SAMPLER. `noise_sampler`: (sigma, next sigma) -> noise like the latent; without one, it follows from the seed."""
    return comfy.samplers.KSAMPLER(sample_ddpm, {"noise_sampler": noise_sampler})
