"""AutoGuidance: away from a weaker model of the same condition (Karras et al., arXiv 2406.02507)."""

import math

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import calc_cond_batch, cfg_function, sampling_function
from torch import Tensor

from .attach import on_model
from .options import Options
from .patches import after_pre_cfg_hooks
from .predictions import UNSEEN

KEY = "reg weak model"


class AutoGuider(comfy.samplers.CFGGuider):
    """D_weak + cfg (D − D_weak), both predictions under the positive cond; cfg = 1 evaluates the model alone.

    With a negative cond, guidance moves away from a blend of two predictions: the weak model's, and the model's own
    under the negative cond, of which `negative_share` (0 AutoGuidance alone, 1 CFG alone) is taken.

    The weak model's run encloses the model's, so that ComfyUI loads, hooks, patches and frees it as it does any model.

    Raises:
        ValueError: the weak model's predictions cannot be compared with the model's.
    """

    def __init__(self, model: ModelPatcher, weak_model: ModelPatcher):
        weak_model = on_model(weak_model, Options(strength=0.0))  # REG has no business there
        _check_alike(model, weak_model)
        super().__init__(model.clone())
        self.weak = comfy.samplers.CFGGuider(_with_weights_of_its_own(weak_model, model))
        self.weak_arguments: dict | None = None  # of its predictions, while a run lasts
        self.negative_share = 0.0

    def set_conds(self, positive, negative=None, negative_share: float = 0.0):
        """Conditionings as ComfyUI's nodes give them; without a negative the share is 0."""
        self.inner_set_conds(
            {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        )
        self.weak.inner_set_conds({"positive": positive})
        self.negative_share = 0.0 if negative is None else negative_share

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        """ComfyUI's `sample`, within the run of the weak model."""
        samples = latent_image

        def run(weak_arguments):
            nonlocal samples
            self.weak_arguments = weak_arguments
            samples = super(AutoGuider, self).sample(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
            )

        if not self.weak.model_patcher.is_clone(self.model_patcher):
            self.model_patcher.set_additional_models(KEY, [self.weak.model_patcher])  # loaded beside it, not instead
        try:
            self.weak.sample(noise, latent_image, _Enclosing(run), sigmas, denoise_mask, None, True, seed)
        finally:
            self.weak_arguments = None
        return samples

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (ComfyUI's signature)
        """The guided prediction, with every hook that ComfyUI's own guidance runs."""
        positive = self.conds["positive"]
        if math.isclose(self.cfg, 1) and not model_options.get("disable_cfg1_optimization", False):
            return sampling_function(self.inner_model, x, timestep, None, positive, 1.0, model_options, seed)
        conds = [positive, self.conds.get("negative", positive)]
        out = list(self.denoise_both(x, timestep, model_options))
        out = after_pre_cfg_hooks(self.inner_model, conds, out, x, timestep, self.cfg, model_options)
        return cfg_function(self.inner_model, *out[:2], self.cfg, x, timestep, model_options, *conds)

    def denoise_both(self, x: Tensor, sigma: Tensor, model_options: dict) -> tuple[Tensor, Tensor]:
        """The model's prediction at x, and the one that guidance moves away from, [batch, ...] each."""
        share = self.negative_share
        conds = [self.conds["positive"], *([self.conds["negative"]] if share > 0 else [])]
        options = {**model_options, UNSEEN: int(share < 1)}
        d_cond, *d_negative = calc_cond_batch(self.inner_model, conds, x, sigma, options)
        if share == 1:
            return d_cond, d_negative[0]
        d_weak = self.weak(x, sigma, **self.weak_arguments)
        return d_cond, torch.lerp(d_weak, d_negative[0], share) if share > 0 else d_weak


class _Enclosing(comfy.samplers.Sampler):
    """Not a sampler: in the place of sampling, something else is done."""

    def __init__(self, run):
        self.run = run

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.run(extra_args)
        return noise


def _check_alike(model: ModelPatcher, weak: ModelPatcher) -> None:
    """Refuse a weak model whose predictions mean something else. Raises ValueError."""
    ours, theirs = _format(model), _format(weak)
    if ours != theirs:
        raise ValueError(
            f"REG: the weak model works on other latents ({theirs[0]}) than the model ({ours[0]}): "
            "choose a weak model of the same family."
        )
    if _noising(model) != _noising(weak):
        raise ValueError(
            "REG: the weak model adds noise on another scale than the model (one is a flow model, the other is not): "
            "choose a weak model of the same family."
        )


def _format(model: ModelPatcher) -> tuple:
    """What tells latents apart."""
    latent_format = model.model.latent_format
    return type(latent_format).__name__, latent_format.latent_channels, latent_format.scale_factor


def _noising(model: ModelPatcher) -> list[float]:
    """What multiplies the clean latent and the noise in the noisy latent, at sigma = 0.5."""
    scaling = model.get_model_object("model_sampling").noise_scaling
    sigma, parts = torch.tensor([0.5]), [(torch.zeros(1), torch.ones(1)), (torch.ones(1), torch.zeros(1))]
    return [scaling(sigma, noise, clean).item() for noise, clean in parts]


def _with_weights_of_its_own(weak: ModelPatcher, model: ModelPatcher) -> ModelPatcher:
    """The weak model; loaded once more where it is the same model with other weights patched in (a LoRA), for ComfyUI
    keeps one state of a model at a time. Raises ValueError."""
    if not weak.is_clone(model) or weak.patches_uuid == model.patches_uuid:
        return weak
    try:
        return weak.clone(force_deepcopy=True)
    except RuntimeError as error:
        raise ValueError(
            "REG: the weak model is the model itself with other weights patched in, and its loader cannot load it a "
            "second time: load the weak model with one of ComfyUI's own loaders, or from another file."
        ) from error
    except TypeError as error:  # no such argument
        raise ValueError(
            "REG: the weak model is the model itself with other weights patched in, which needs ComfyUI 0.27 or newer: "
            "load the weak model from another file."
        ) from error
