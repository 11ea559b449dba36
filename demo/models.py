"""The demo models: ComfyUI's own UNet in pixel space, small enough to train on two cores.

The UNet sees the picture as blocks of pixels (a permutation, exactly invertible), so that a 64x64 picture costs what a
16x16 or 32x32 one does. Everything around it is ComfyUI's: `BaseModel`, `ModelPatcher`, the model sampling, the
pixel-space VAE. The models differ in what the network predicts, as the models people use do.
"""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from einops import rearrange
from safetensors import safe_open

from . import world

SIGMA_DATA = 0.5
CONTEXT_DIM = sum(len(values) for values in world.ATTRIBUTES.values())


class BlockUNet(UNetModel):
    """ComfyUI's UNetModel on blocks of pixels: [batch, 3, h, w] -> [batch, 3, h, w], h and w multiples of 4 blocks.

    Prompts reach it twice: token by token through attention, and their sum through the embedding of the noise level,
    which is what a small network learns soon.
    """

    time_scale = 1.0  # ComfyUI embeds times of the order of 1000

    def __init__(self, block: int, **kwargs):
        super().__init__(in_channels=3 * block**2, out_channels=3 * block**2, **kwargs)
        self.block = block

    def forward(self, x, t, context=None, **kwargs):
        blocks = rearrange(x, "b c (h i) (w j) -> b (c i j) h w", i=self.block, j=self.block)
        out = super().forward(blocks, self.time_scale * t, context=context, y=context.sum(1), **kwargs)
        return rearrange(out, "b (c i j) h w -> b c (h i) (w j)", i=self.block, j=self.block)


class CleanUNet(BlockUNet):
    """Predicts the clean picture over sigma_data; what it returns is that prediction as EDM's network output.

    The clean picture is simple; the noise has more numbers than a small network can carry (arXiv 2511.13720).
    """

    time_scale = 100.0

    def forward(self, x, t, context=None, **kwargs):
        out, x, sigma = super().forward(x, t, context, **kwargs).float(), x.float(), (4 * t.float()).exp()
        sigma = sigma.view(-1, 1, 1, 1)
        scale = (sigma**2 + SIGMA_DATA**2).sqrt()
        return (out - SIGMA_DATA / scale * x) * scale / sigma


class DemoConfig(comfy.supported_models_base.BASE):
    """EDM (Karras et al., arXiv 2206.00364) on RGB pixels in -1 to 1: the model of the demo."""

    prediction = ModelType.EDM
    network = CleanUNet
    unet_config = {
        "block": 4,
        "image_size": 16,
        "model_channels": 64,
        "num_res_blocks": [2, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [0, 0, 1],
        "transformer_depth_output": [0, 0, 0, 1, 0],
        "transformer_depth_middle": 1,
        "context_dim": CONTEXT_DIM,
        "num_classes": "sequential",
        "adm_in_channels": CONTEXT_DIM,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "legacy": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = comfy.latent_formats.ChromaRadiance  # plain RGB
    sampling_settings = {"sigma_data": SIGMA_DATA, "sigma_min": 0.02, "sigma_max": 80.0}
    memory_usage_factor = 0.1

    def model_type(self, state_dict, prefix=""):
        return self.prediction

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(self, self.prediction, device=device, unet_model=self.network)


class EpsConfig(DemoConfig):
    """Predicts the noise, in Stable Diffusion's schedule."""

    prediction = ModelType.EPS
    network = BlockUNet
    unet_config = DemoConfig.unet_config | {
        "block": 2,  # 12 numbers of noise pass through 64 channels; 48 do not
        "image_size": 32,
        "num_res_blocks": [1, 1, 1],
        "channel_mult": [1, 1, 2],
        "transformer_depth": [0, 0, 0],
        "transformer_depth_output": [0, 0, 0, 0, 0, 1],
    }
    sampling_settings = {}


class FlowConfig(EpsConfig):
    """Predicts the velocity from clean picture to noise along straight lines, as flow-matching models do."""

    prediction = ModelType.FLOW
    sampling_settings = {"shift": 3.0}


CONFIGS = {"demo": DemoConfig, "eps": EpsConfig, "flow": FlowConfig}


def build(
    kind: type[DemoConfig] = DemoConfig,
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype | None = None,
) -> comfy.model_base.BaseModel:
    """The architecture with fresh random weights; `compute_dtype` other than dtype casts layer by layer."""
    config = kind(kind.unet_config)
    config.set_inference_dtype(dtype, compute_dtype)
    return config.get_model({})


def load(path: str, compute_dtype: torch.dtype | None = None) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE]:
    """The trained model as a plain ComfyUI MODEL, and its VAE, from a safetensors file whose header names its config.

    Args:
        compute_dtype: None leaves it to ComfyUI.
    """
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    device = comfy.model_management.get_torch_device()
    dtype = comfy.utils.weight_dtype(state)
    compute_dtype = compute_dtype or comfy.model_management.unet_manual_cast(dtype, device)
    model = build(config_of(path), dtype, compute_dtype)
    patcher = comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(state, assign=patcher.is_dynamic())
    return patcher, comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def config_of(path: str) -> type[DemoConfig]:
    """The architecture of a safetensors file, by its header."""
    with safe_open(path, "pt") as file:
        return CONFIGS[(file.metadata() or {}).get("config", "demo")]


def sigma_at(sampling: torch.nn.Module, ratio: torch.Tensor) -> torch.Tensor:
    """A model's own sigma where noise is `ratio` times as strong as the picture is scaled, within its range, [batch]."""
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    return (ratio / (1 + ratio) if flow else ratio).clamp(float(sampling.sigma_min), float(sampling.sigma_max))


def scheduler(sampling) -> str:
    """The schedule people use: even steps of time for flow models, Karras' for the others."""
    return "simple" if isinstance(sampling, comfy.model_sampling.CONST) else "karras"


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
