"""The demo models: ComfyUI's own UNet in pixel space, small enough to train on two cores.

The UNet sees the picture as 4x4 pixel blocks (a permutation, exactly invertible), so that a 64x64 picture costs what a
16x16 one does. Everything around it is ComfyUI's: `BaseModel`, `ModelPatcher`, the model sampling, the pixel-space VAE.
"""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from einops import rearrange

from . import world

BLOCK = 4  # pixels along each side of a block
SIGMA_DATA = 0.5
CONTEXT_DIM = sum(len(values) for values in world.ATTRIBUTES.values())


class BlockUNet(UNetModel):
    """ComfyUI's UNetModel on blocks of pixels: [batch, 3, h, w] -> [batch, 3, h, w], h and w multiples of 8.

    Its output times sigma_data is the clean picture, which is simple, and not the noise, which has more numbers than a
    small network can carry (Li and He, arXiv 2511.13720); what it returns is that prediction as EDM's network output.
    At high noise the two are the same. With `clean` off it is EDM's output itself.
    """

    clean = True

    def forward(self, x, t, *args, **kwargs):
        blocks = rearrange(x, "b c (h i) (w j) -> b (c i j) h w", i=BLOCK, j=BLOCK)
        out = super().forward(blocks, t, *args, **kwargs)
        out = rearrange(out, "b (c i j) h w -> b c (h i) (w j)", i=BLOCK, j=BLOCK)
        return self._as_edm(out.float(), x.float(), t.float()) if self.clean else out

    @staticmethod
    def _as_edm(out, x, t):
        """The network output of EDM that gives the prediction sigma_data · out."""
        sigma = (4 * t).exp().view(-1, 1, 1, 1)
        scale = (sigma**2 + SIGMA_DATA**2).sqrt()
        return (out - SIGMA_DATA / scale * x) * scale / sigma


class DemoConfig(comfy.supported_models_base.BASE):
    """EDM (Karras et al., arXiv 2206.00364) on RGB pixels in -1 to 1."""

    unet_config = {
        "image_size": world.SIZE // BLOCK,
        "in_channels": 3 * BLOCK**2,
        "out_channels": 3 * BLOCK**2,
        "model_channels": 64,
        "num_res_blocks": [2, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 0, 1],
        "transformer_depth_output": [0, 0, 0, 1, 0],
        "transformer_depth_middle": 1,
        "context_dim": CONTEXT_DIM,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "legacy": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = comfy.latent_formats.ChromaRadiance  # plain RGB
    sampling_settings = {"sigma_data": SIGMA_DATA, "sigma_min": 0.02, "sigma_max": 80.0}
    memory_usage_factor = 0.1

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.EDM

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(
            self, model_type=self.model_type(state_dict, prefix), device=device, unet_model=BlockUNet
        )


def build(dtype: torch.dtype = torch.float32, compute_dtype: torch.dtype | None = None) -> comfy.model_base.BaseModel:
    """The architecture with fresh random weights; `compute_dtype` other than dtype casts layer by layer."""
    config = DemoConfig(DemoConfig.unet_config)
    config.set_inference_dtype(dtype, compute_dtype)
    return config.get_model({})


def load(path: str) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """The trained model as a plain ComfyUI MODEL, and its VAE, from a safetensors file."""
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    device = comfy.model_management.get_torch_device()
    dtype = comfy.utils.weight_dtype(state)
    model = build(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    patcher = comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(state, assign=patcher.is_dynamic())
    return patcher, comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def prompt_tokens(**attributes) -> torch.Tensor:
    """Tokens of a prompt, [1, 4, CONTEXT_DIM]: one token per attribute, one-hot where stated, zero where not.

    Attributes: shape, colour, background, count, each one of its values in `world.ATTRIBUTES`.
    """
    index = [
        list(map(str, values)).index(str(attributes[name])) if name in attributes else -1
        for name, values in world.ATTRIBUTES.items()
    ]
    return encode_prompts(torch.tensor([index]))


def encode_prompts(index: torch.Tensor) -> torch.Tensor:
    """Indices of attribute values, -1 for "not stated", [batch, 4] -> tokens [batch, 4, CONTEXT_DIM]."""
    tokens = torch.zeros(*index.shape, CONTEXT_DIM)
    offset = torch.tensor([0, *(len(values) for values in world.ATTRIBUTES.values())]).cumsum(0)[:-1]
    stated = index >= 0
    tokens.scatter_(-1, (index.clamp(min=0) + offset)[..., None], stated[..., None].float())
    return tokens
