"""What a test needs of a model family: a tiny MODEL, a noisy latent and conditionings, all from seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy.nested_tensor import NestedTensor

SEEN_AT_ONCE = 2**20  # random numbers drawn for one tensor; a larger one repeats them


def draw_from(seed):
    """A function `draw(*shape)` of normal numbers: the one source of chance in a family."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def nothing(draw):
    return {}


@dataclass(frozen=True)
class Family:
    """One tiny model, built by ComfyUI's own config class.

    `latents` has one shape, or several for a nested latent (video and sound). `extras(draw)` gives the entries of a
    conditioning that the model's `extra_conds` reads besides text and pooled text; `checkpoint(draw)` what
    `get_model` reads from a state dict.
    """

    config: type
    unet: dict
    latents: tuple[tuple[int, ...], ...]  # [batch, channels, ...]
    text: tuple[int, int] = (4, 32)  # [tokens, width]
    pooled: int = 0
    extras: Callable = nothing
    checkpoint: Callable = nothing
    starts_from_latent: bool = False  # without noise: from the latent it is given
    apart: bool = False  # predictions depend on the batch: texts of two seeds differ in length, so that none is shared
    masked: bool = False  # the first half of the (first) latent is given, and only the rest is to be denoised

    @torch.inference_mode()
    def build(self, seed=0, dtype=torch.float32):
        """A plain MODEL, its weights inference tensors as in a prompt; they depend on the seed alone."""
        device = comfy.model_management.get_torch_device()
        config = self.config(self.unet)
        config.set_inference_dtype(dtype, None)
        draw = draw_from(seed)
        with UninitialisedIsNaN():
            model = config.get_model(self.checkpoint(draw), "", device=torch.device("cpu"))
        randomise(model, draw)
        return CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))

    def latent(self, seed=0):
        """Normal numbers in the shape of the latent: a tensor, or a NestedTensor."""
        draw = draw_from(seed)
        parts = [draw(*shape) for shape in self.latents]
        return parts[0] if len(parts) == 1 else NestedTensor(parts)

    def mask(self):
        """The denoise mask in the parts of the latent, 0 where it is given; None without one."""
        if not self.masked:
            return None
        parts = [torch.ones(shape[0], 1, *shape[2:]) for shape in self.latents]
        parts[0][:, :, : parts[0].shape[2] // 2] = 0
        return parts[0] if len(parts) == 1 else NestedTensor(parts)

    def conditioning(self, seed=0):
        """A random prompt as ComfyUI's CONDITIONING. Fresh tensors each time, for some models write into them."""
        draw = draw_from(seed)
        options = {"pooled_output": draw(1, self.pooled)} if self.pooled else {}
        tokens, width = self.text
        text = draw(1, tokens + self.apart * (seed % 2), width)
        return [[text, options | self.extras(draw)]]


def with_unet(config, **changes):
    """The config class with some of the `unet_extra_config` changed that ComfyUI imposes on each of its models."""
    return type(config.__name__, (config,), {"unet_extra_config": config.unet_extra_config | changes})


def with_part(config, name, part, **sizes):
    """The config class with one module of its models replaced by a small one, where ComfyUI fixes the size."""

    def get_model(self, *arguments, **options):
        model = config.get_model(self, *arguments, **options)
        small = part(**sizes, dtype=model.get_dtype(), operations=comfy.ops.manual_cast)
        setattr(model.diffusion_model, name, small.eval().requires_grad_(False))
        return model

    return type(config.__name__, (config,), {"get_model": get_model})


class UninitialisedIsNaN:
    """Inside, `torch.empty` is NaN: what is NaN afterwards is what a checkpoint would have filled."""

    def __enter__(self):
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *error):
        torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])


@torch.no_grad()
def randomise(model, draw):
    """Draws every parameter, and every buffer that a checkpoint would have filled, in the order of their names."""
    for name, parameter in sorted(model.named_parameters()):
        parameter.copy_(typical(name, parameter.shape, draw))
    for name, buffer in sorted(model.named_buffers()):
        if buffer.is_floating_point() and buffer.isnan().any():
            buffer.copy_(typical(name, buffer.shape, draw))


def typical(name, shape, draw):
    """Weights that keep activations of order one: matrices scaled by their fan-in, norms near 1, biases small.

    Nothing is zero, so that the gates and the output layers that DiTs start at zero take part.
    """
    if len(shape) > 1:
        return many(shape, draw) / math.sqrt(math.prod(shape[1:]))
    if name.endswith(("weight", "scale", "gamma", "alpha")):
        return 1 + 0.1 * draw(*shape)
    return 0.1 * draw(*shape)


def many(shape, draw):
    """`draw(*shape)`, quickly."""
    size = math.prod(shape)
    if size <= SEEN_AT_ONCE:
        return draw(*shape)
    return draw(SEEN_AT_ONCE).repeat(math.ceil(size / SEEN_AT_ONCE))[:size].view(shape)
