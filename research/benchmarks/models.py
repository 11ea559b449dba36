"""Architectures with random weights: what a step costs does not depend on what the model has learned.

Real sizes are for a GPU. The reduced ones have the real structure: every kind of block, but fewer and narrower.
"""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import comfy.supported_models as configs
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15 = UNET | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 768,
}
SDXL = UNET | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD35 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "adm_in_channels": 2048,
    "num_patches": 384**2,
    "pos_embed_max_size": 384,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "txt_ids_dims": [],
    "guidance_embed": True,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "text_len": 512,
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 256,
    "text_dim": 4096,
}


@dataclass
class Architecture:
    """One model, at its real size or reduced."""

    name: str
    size: str  # in words
    config: type
    unet: dict
    latent: tuple[int, ...]  # [channels, ...]
    text: tuple[int, int]  # [tokens, width]
    pooled: int = 0
    core: tuple[str, Callable] | None = None  # one of ComfyUI's own guidance patches, for scale

    def build(self, dtype: torch.dtype) -> CoreModelPatcher:
        """A plain MODEL."""
        return with_random_weights(self.config(self.unet), dtype)

    def prompts(self) -> list[list]:
        """Two random prompts, as ComfyUI's CONDITIONING."""
        generator = torch.Generator().manual_seed(0)
        pooled = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
        return [[[torch.randn(1, *self.text, generator=generator), dict(pooled)]] for _ in range(2)]

    @torch.inference_mode()
    def sample(self, model: CoreModelPatcher, sampler, sigmas: torch.Tensor, callback: Callable | None = None):
        """A run at cfg 5 from noise of seed 0, of a MODEL of this architecture."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*self.prompts())
        guider.set_cfg(5.0)
        noise = torch.randn(1, *self.latent, generator=torch.Generator().manual_seed(0))
        latent = torch.zeros_like(noise)
        return guider.sample(noise, latent, sampler, sigmas, callback=callback, disable_pbar=True).clone()

    def euler(self, model: CoreModelPatcher, steps: int, callback: Callable | None = None) -> torch.Tensor:
        """So many Euler steps, evenly through the times of the model."""
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        return self.sample(model, comfy.samplers.sampler_object("euler"), sigmas, callback)


def architectures(real: bool) -> dict[str, Architecture]:
    """The models by their short names."""
    pag = "PAG with CFG", lambda model: PerturbedAttentionGuidance.execute(model, 3.0).args[0]
    side = 64 if real else 32
    pictures = 128 if real else 32
    sd15, sdxl = ({"model_channels": 320 if real else 64} for _ in range(2))
    blocks = 24 if real else 6  # SD3's width goes with its depth
    sd35 = {"depth": blocks, "x_block_self_attn_layers": list(range(blocks // 2 + 1))}
    sd35["context_embedder_config"] = {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 64 * blocks},
    }
    flux = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38}
    wan = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
    if not real:
        flux = {"hidden_size": 384, "num_heads": 3, "depth": 2, "depth_single_blocks": 4}
        wan = {"dim": 384, "ffn_dim": 2240, "num_heads": 3, "num_layers": 6}
    all_of_them = [
        Architecture("SD1.5", words(sd15), configs.SD15, SD15 | sd15, (4, side, side), (77, 768), core=pag),
        Architecture("SDXL", words(sdxl), configs.SDXL, SDXL | sdxl, (4, pictures, pictures), (77, 2048), 1280, pag),
        Architecture(
            "SD3.5-M",
            f"{blocks} blocks",
            configs.SD3,
            SD35 | sd35,
            (16, pictures, pictures),
            (154, 4096),
            2048,
            skip_layers(str(blocks // 3)),
        ),
        Architecture(
            "Flux", words(flux), configs.Flux, FLUX | flux, (16, pictures, pictures), (256, 4096), 768, skip_layers("1")
        ),
        Architecture(
            "Wan2.1",
            words(wan),
            configs.WAN21_T2V,
            WAN | wan,
            (16, 9 if real else 3, 60 if real else 20, 104 if real else 32),
            (512, 4096),
        ),
    ]
    return {architecture.name.lower(): architecture for architecture in all_of_them}


def words(sizes: dict) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def skip_layers(layers: str) -> tuple[str, Callable]:
    name = "SLG with CFG"
    return name, lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, double_layers=layers).args[0]


def sd15(channels: int, dtype: torch.dtype) -> CoreModelPatcher:
    """Stable Diffusion 1.5's UNet of any width (320 is the real one) as a MODEL."""
    return with_random_weights(configs.SD15(SD15 | {"model_channels": channels}), dtype)


def with_random_weights(config, dtype: torch.dtype) -> CoreModelPatcher:
    """The config's model with weights that keep activations of order one."""
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for weight in [*model.diffusion_model.parameters(), *model.diffusion_model.buffers()]:
        if weight.is_floating_point():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.data.normal_(0, scale, generator=generator)
    return CoreModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
