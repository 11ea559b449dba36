"""Measure a profile: what rectification would measure, on noisy versions of a few pictures the model makes itself."""

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..reg import estimators, per_sample, rectification
from ..reg.profile import RANGES, Profile
from .checks import check_prompt, describe, relative_step
from .patches import OURS, after_pre_cfg_hooks
from .step import alpha

MOST_EFFECT = RANGES["effect"][1]
MOST_STEPS, MOST_POINTS = 1000, 1000


def calibrate(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: Tensor,
    cfg: float,
    steps: int,
    points: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """A profile from as many pictures as `latent` [batch, ...] has, at `points` noise levels.

    It takes 2 + 2 steps + 5 points evaluations of the model.

    Raises:
        ValueError: the latent holds several tensors (video with sound), a conditioning is empty or makes no difference,
            the model predicts NaN, or a number is out of range; the message says which.
    """
    for what, number, most in (("steps", steps, MOST_STEPS), ("points", points, MOST_POINTS)):
        if not 2 <= number <= most:
            raise ValueError(f"REG: {what} must be between 2 and {most}, not {number}.")
    for what, conditioning in (("positive", positive), ("negative", negative)):
        check_prompt(what, conditioning)
        if not conditioning:
            raise ValueError(f"REG: the {what} conditioning is empty: connect a prompt.")
    if not 1 <= cfg <= 100:
        raise ValueError(f"REG: cfg must be between 1 and 100, not {cfg}.")
    if latent.is_nested:
        raise ValueError("REG: latents of several parts cannot be profiled: choose estimator = difference.")
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, OURS)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = Calibration(points, seed, progress)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    guider.sample(comfy.sample.prepare_noise(latent, seed), latent, sampler, sigmas, disable_pbar=True, seed=seed)
    sampler.about |= {"cfg": f"{cfg:g}", "steps": str(steps), "seed": str(seed), "samples": str(len(latent))}
    return Profile(**sampler.curves(), about=sampler.about)


class Calibration(comfy.samplers.Sampler):
    """A sampler that samples, and then measures along the noise levels it came from."""

    def __init__(self, points: int, seed: int, progress: Callable[[int, int], None]):
        self.points = points
        self.generator = torch.Generator().manual_seed(seed)
        self.progress = progress
        self.rows: list[dict[str, Tensor]] = []
        self.about: dict[str, str] = {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs):
        self._require_guidance(model_wrap, extra_args["model_options"], noise, sigmas[0])
        total = len(sigmas) - 1 + self.points
        euler = comfy.samplers.sampler_object("euler")
        step = lambda i, *_: self.progress(i + 1, total)  # noqa: E731
        x0 = euler.sample(model_wrap, sigmas, extra_args, step, noise, latent_image, *args, **kwargs)
        _require_finite(x0)
        model = model_wrap.inner_model
        self.about = describe(model, noise.shape[1]) | {
            "model": type(model.model_config).__name__,
            "size": "x".join(map(str, noise.shape[2:])),
        }
        levels = torch.logspace(*sigmas[:-1][[-1, 0]].log10().tolist(), self.points).to(noise)
        for done, sigma in enumerate(levels.flip(0), len(sigmas)):
            self.rows.insert(0, self._measure(model_wrap, extra_args["model_options"], x0, sigma))
            self.progress(done, total)
        return x0

    def _require_guidance(self, guider, model_options: dict, noise: Tensor, sigma: Tensor) -> None:
        """Refuse, before anything is sampled, what has no guidance to measure. Raises ValueError."""
        model, sigmas = guider.inner_model, sigma.expand(len(noise)).contiguous()
        x = model.model_sampling.noise_scaling(sigmas, noise, torch.zeros_like(noise), True)
        conds = [guider.conds["positive"], guider.conds["negative"]]
        cond, uncond = comfy.samplers.calc_cond_batch(model, conds, x, sigmas, model_options)
        _require_finite(cond, uncond)
        if rectification.is_rounding(cond - uncond, cond, uncond).all():
            raise ValueError(
                "REG: the model predicts the same with the positive conditioning as with the negative one, so there is "
                "no guidance to measure: connect two different prompts."
            )

    def _measure(self, guider, model_options: dict, x0: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """One point of each curve."""
        sampling = guider.inner_model.model_sampling
        sigmas = sigma.expand(len(x0)).contiguous()
        noise = torch.randn(x0.shape, generator=self.generator).to(x0)
        x = sampling.noise_scaling(sigmas, noise, x0)
        conds = [guider.conds["positive"], guider.conds["negative"]]

        def denoise(x: Tensor, *conds) -> list[Tensor]:
            return comfy.samplers.calc_cond_batch(guider.inner_model, list(conds), x, sigmas, model_options)

        step = relative_step(guider.inner_model, x)
        cond, uncond = denoise(x, *conds)
        inner, cfg = guider.inner_model, guider.cfg
        towards, away, *_ = after_pre_cfg_hooks(inner, conds, [cond, uncond], x, sigmas, cfg, model_options)
        guidance, scale = towards - away, alpha(sampling, sigmas, x)
        along = estimators.probe(x, guidance, step)
        jc, ju = (along.product(d, m) for d, m in zip((cond, uncond), denoise(along.x, *conds), strict=True))
        up = estimators.probe(x, torch.ones_like(x), step)
        jt_ones = up.product(cond, denoise(up.x, conds[0])[0])
        rho = rectification.jacobian_ratio(guidance, jc, ju, scale)
        return {
            "sigmas": sigma,
            "factor": rectification.elementwise_factor(jt_ones, scale).transpose(0, 1).flatten(1).mean(1),
            "gain": rectification.gain(guidance, scale * jc).mean(),
            "rho": rho.mean(),
            "spread": rho.std(correction=0),
            "effect": (per_sample.rms(guidance) / per_sample.rms(cond).clamp(min=1e-6)).mean().clamp(max=MOST_EFFECT),
        }

    def curves(self) -> dict[str, Tensor]:
        """Sigmas and curves, sigmas ascending."""
        return {name: torch.stack([row[name] for row in self.rows]).float().cpu() for name in self.rows[0]}


def _require_finite(*predictions: Tensor) -> None:
    """Raises ValueError."""
    if not all(bool(prediction.isfinite().all()) for prediction in predictions):
        raise ValueError(
            "REG: the model predicts NaN or infinite values, so there is nothing to measure: "
            "see that it makes a picture first, without REG."
        )
