"""The exact world as a ComfyUI MODEL: real nodes and samplers on a mixture in the plane whose target is known.

A latent [batch, 2, 1, 1] is a batch of points, each a sample of its own.
"""

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models_base
import torch
from torch import Tensor

from ..lab import chains, worlds

SIGMA_DATA = 0.5


class Plane(comfy.latent_formats.LatentFormat):
    """Points of the plane, as they are."""

    latent_channels = 2
    spacial_downscale_ratio = 1


class ToyConfig(comfy.supported_models_base.BASE):
    unet_config = {}
    unet_extra_config = {}
    latent_format = Plane
    sampling_settings = {"sigma_data": SIGMA_DATA, "sigma_min": chains.SIGMA_MIN, "sigma_max": chains.SIGMA_MAX}


class ExactNetwork(torch.nn.Module):
    """What a perfect EDM network would output for a pair of mixtures; the context says which of the two."""

    dtype = torch.float32

    def __init__(self, pair: worlds.Pair):
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **kwargs) -> Tensor:
        """x: [batch, 2, 1, 1] scaled to unit variance; t: [batch] log(sigma) / 4; context: [batch, 1, 1], 1 or 0."""
        sigma = float((4 * t[0].double()).exp())
        scale = (sigma**2 + SIGMA_DATA**2) ** 0.5
        points = x.double().flatten(1) * scale
        denoised = torch.where(
            context[:, 0, :1] > 0.5, self.pair.cond.denoise(points, sigma), self.pair.uncond.denoise(points, sigma)
        )
        out = (denoised - SIGMA_DATA**2 / scale**2 * points) * scale / (sigma * SIGMA_DATA)
        return out.view_as(x).float()


def model(seed: int) -> comfy.model_patcher.ModelPatcher:
    """The pair of mixtures `lab.worlds.classes(seed)` as a plain MODEL."""
    config = ToyConfig({})
    config.set_inference_dtype(torch.float32, None)
    network = ExactNetwork(worlds.classes(seed))
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EDM, unet_model=lambda **kwargs: network)
    processor = torch.device("cpu")  # in double precision, which not every card has
    return comfy.model_patcher.CoreModelPatcher(base, processor, processor)


def conditioning(positive: bool) -> list:
    """The mixture's class, or everything."""
    return [[torch.full((1, 1, 1), float(positive)), {}]]


def latent(points: int) -> dict:
    """An empty latent of that many points."""
    return {"samples": torch.zeros(points, 2, 1, 1)}
