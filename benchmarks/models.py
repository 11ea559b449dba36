"""Architectures with random weights: what a step costs does not depend on what the model has learned."""

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import CoreModelPatcher

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "legacy": False,
}


def sd15(channels: int, dtype: torch.dtype) -> CoreModelPatcher:
    """Stable Diffusion 1.5's UNet of any width (320 is the real one) as a MODEL."""
    config = comfy.supported_models.SD15(UNET | {"model_channels": channels})
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.diffusion_model.parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        weight.data.normal_(0, scale, generator=generator)
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
