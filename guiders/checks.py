"""What must be true of a prompt, a model and a latent before a run, and how precisely the model computes."""

import torch
from torch import Tensor

from ..reg import estimators
from ..reg.profile import DAMAGED, Profile
from .autograd.weights import rounds_activations

NO_DENOISER = "REG: this model has no denoiser: connect a diffusion model, as a checkpoint loader gives it."

# How far two evaluations made the same way may be from each other, over the prediction: above the rounding of batches
# of another size, and far below what a patch does that tells them apart.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
ROUGH = 0.15  # networks that compute on 8 or 4 bits, whose rounding depends on what else is in the batch


def check_prompt(name: str, conditioning: list) -> None:
    """Raises ValueError: it is no conditioning."""
    parts = conditioning if isinstance(conditioning, list) else [None]
    if not all(isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[1], dict) for part in parts):
        raise ValueError(f"REG: what is connected as {name} is no conditioning: connect a prompt.")


def check_model(model) -> None:
    """Raises ValueError: there is no noise scale to read α from."""
    if not hasattr(model.model_sampling, "noise_scaling"):
        raise ValueError(NO_DENOISER)


def check_latent(model, noise: Tensor) -> None:
    """Raises ValueError: the latent is another model's."""
    channels = model.latent_format.latent_channels
    if noise.ndim >= 4 and noise.shape[1] != channels:
        raise ValueError(
            f"REG: the latent has {noise.shape[1]} channels and this model takes {channels}: "
            "connect an empty latent, or one encoded by this model's own VAE."
        )


def check_profile(profile: Profile, model, channels: int) -> None:
    """Refuse a profile that was measured on another kind of model. Raises ValueError."""
    for name, here in describe(model, channels).items():
        there = profile.about.get(name)
        if there != here:
            raise ValueError(
                f"REG: this profile was measured on a model with {name} {there} and this one has {here}: "
                "measure one for this model with REG Calibrate."
            )
    if profile.factor.shape[1] != channels:  # than it says of itself
        raise ValueError(DAMAGED)


def describe(model, channels: int) -> dict[str, str]:
    """What a profile must agree on with the model it is used on."""
    return {"prediction": model.model_type.name, "channels": str(channels)}


def relative_step(model, x: Tensor) -> float:
    """The step of a difference over the root mean square of x [batch, ...], by the precision the model computes in."""
    if _rounds(model):
        return estimators.LARGEST_STEP
    return estimators.relative_step(_dtype(model, x), x[0].numel())


def tolerance(model, x: Tensor) -> float:
    """How far two evaluations made the same way may be from each other, over the prediction."""
    return ROUGH if _rounds(model) else TOLERANCE.get(_dtype(model, x), TOLERANCE[torch.bfloat16])


def _rounds(model) -> bool:
    return rounds_activations(getattr(model, "diffusion_model", torch.nn.Identity()))


def _dtype(model, x: Tensor) -> torch.dtype:
    """What the model computes in; TF32 is as coarse as float16."""
    dtype = model.get_dtype_inference()
    is_tf32 = dtype == torch.float32 and x.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return torch.float16 if is_tf32 else dtype
