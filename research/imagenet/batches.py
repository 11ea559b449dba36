"""One batch of pictures: what it depends on, how it is sampled, and what is kept of it.

What is kept is what the judges need, the features of each picture, under an address made of everything that they depend on
but the code: raise VERSION when a change of the code changes them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import comfy.samplers
import comfy.sd
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

from ...paper import classes, models, sampling
from . import features, rules

VERSION = 1
SHOWN = 8  # pictures of a batch that are kept to be looked at


@dataclass(frozen=True)
class Models:
    """The files of a system."""

    model: str
    vae: str = ""  # of Stable Diffusion 1; none for models on pixels
    uncond: str = ""  # EDM2's network without classes
    weak: str = ""  # the weaker network of AutoGuidance
    dtype: str = "auto"

    def away(self, rule: rules.Rule) -> str:
        """The file of the network that the rule guides away from, if it is one of its own."""
        return self.weak if rule.guides_by_a_weaker_model else self.uncond


@dataclass(frozen=True)
class Batch:
    """The pictures number `first` to `first + count` of a model, a rule and a scale."""

    models: Models
    rule: str
    scale: float
    steps: int
    first: int
    count: int
    features: str

    @classmethod
    def of(cls, fields: dict) -> "Batch":
        """From `asdict`."""
        return cls(**fields | {"models": Models(**fields["models"])})

    def address(self) -> str:
        """A digest of all that the result depends on; of files, their content."""
        rule = rules.Rule.parse(self.rule)
        files = [self.models.model, self.models.vae, self.models.away(rule)]
        content = asdict(self) | {"models": [self.models.dtype, *(digest(file) for file in files if file)]}
        return hashlib.sha256(json.dumps([VERSION, content], sort_keys=True).encode()).hexdigest()


@dataclass
class Result:
    """What is kept of a batch."""

    features: np.ndarray  # [count, width] float32
    logits: np.ndarray  # [count, classes] float32
    shown: np.ndarray  # [up to SHOWN, h, w, 3] uint8


@cache
def digest(file: str) -> str:
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def sample(batch: Batch) -> Result:
    """Sample a batch and look at its pictures. The same batch on the same kind of device gives the same bits.

    Raises:
        ValueError: a model cannot be loaded, or does not do for the rule.
    """
    pictures = pictures_of(batch)
    found, logits = features.extractor(batch.features)(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    return Result(found.numpy(), logits.numpy(), pictures[:SHOWN])


@torch.inference_mode()
def pictures_of(batch: Batch) -> np.ndarray:
    """[count, h, w, 3] uint8."""
    rule = rules.Rule.parse(batch.rule)
    files, dtype = batch.models, batch.models.dtype
    model, vae = load(files.model, dtype), load_vae(files.model, files.vae, dtype)
    away = load(files.away(rule), dtype) if files.away(rule) else None
    generators = [torch.Generator().manual_seed(index) for index in range(batch.first, batch.first + batch.count)]
    noise, ids = normal(generators, latent_shape(model)), some_classes(generators, model)
    guider = rules.guider(rule, batch.scale, model, classes.conditioning(ids), classes.conditioning([]), away)
    if rules.system_of(model) == "dit":
        sampler = sampling.ddpm(lambda sigma, _: normal(generators, noise.shape[1:]).to(sigma.device))
        sigmas = sampling.spaced_sigmas(model, batch.steps)
    else:
        sampler = comfy.samplers.sampler_object("heun")
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", batch.steps)
    latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=batch.first)
    values = 255 * vae.decode(latent).float().cpu()
    standardised = isinstance(model.model.latent_format, models.StandardisedLatents)
    values = values if standardised else values + 0.5  # EDM2 cuts off after its VAE; all others round
    return values.clamp(0, 255).byte().numpy()


def normal(generators: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """[count, *shape], each picture's from a generator of its own: another size of batch draws the same pictures."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def some_classes(generators: list[torch.Generator], model: ModelPatcher) -> list[int]:
    """A class for each picture, uniformly of those that the model knows."""
    known = model.model.model_config.unet_config["classes"] or 1
    return [int(torch.randint(known, (), generator=generator)) for generator in generators]


def latent_shape(model: ModelPatcher) -> tuple[int, int, int]:
    """Channels, height and width of the latents that a DiT or an EDM2 takes."""
    network, channels = model.model.diffusion_model, model.model.latent_format.latent_channels
    size = round(network.pos_embed.shape[1] ** 0.5) * network.patch if hasattr(network, "patch") else network.resolution
    return channels, size, size


@cache
def load(file: str, dtype: str) -> ModelPatcher:
    """A DiT or an EDM2, by what is in the file. Raises ValueError: it is neither."""
    return models.load_edm2(file, dtype) if is_edm2(file) else models.load_dit(file, dtype=dtype)


def is_edm2(file: str) -> bool:
    """Is the file one that the converter wrote? The weights are not read."""
    try:
        with safe_open(file, "pt") as opened:
            return any(name.startswith("unet.") for name in opened.keys())  # noqa: SIM118 (it is no dictionary)
    except SafetensorError:
        return False


@cache
def load_vae(model: str, file: str, dtype: str) -> comfy.sd.VAE:
    """The VAE to decode a model's latents with. Raises ValueError: it needs one."""
    latent_format = load(model, dtype).model.latent_format
    if isinstance(latent_format, models.Pixels):
        return models.pixel_vae()
    if not file:
        raise ValueError(f"REG: {Path(model).name} works on latents: name the file of its VAE with --vae.")
    vae = comfy.sd.VAE(sd=models.read(file))
    vae.throw_exception_if_invalid()
    return models.for_pixels_from_0(vae) if isinstance(latent_format, models.StandardisedLatents) else vae
