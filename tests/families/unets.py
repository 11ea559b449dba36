"""Families built on ComfyUI's UNetModel, and Stable Cascade's two stages."""

from types import SimpleNamespace

import torch
from comfy import supported_models as models

from .family import Family

PICTURE = ((1, 4, 8, 8),)


def unet(**changes):
    """Two levels, one block each, attention on both."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "context_dim": 32,
        "adm_in_channels": None,
        "use_checkpoint": False,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    } | changes


def wide(**changes):
    """For the configs with heads of 64 channels and linear projections."""
    return unet(model_channels=64, channel_mult=[1, 1], use_linear_in_transformer=True, **changes)


def labelled(channels, **changes):
    """With a vector conditioning of that many channels."""
    return wide(num_classes="sequential", adm_in_channels=channels, **changes)


def video(channels):
    """Stable Video Diffusion: the frames are the batch."""
    return labelled(
        channels,
        in_channels=8,
        extra_ff_mix_layer=True,
        use_spatial_context=True,
        merge_strategy="learned_with_images",
        merge_factor=0.0,
        video_kernel_size=[3, 1, 1],
        disable_temporal_crossattention=False,
    ) | {"use_temporal_attention": True, "use_temporal_resblock": True}


def v_prediction(draw):
    """The mark by which ComfyUI tells SD2-v from SD2 (`SD20.model_type`)."""
    return {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}


def picture_prompt(width):
    """unCLIP: a picture as a part of the prompt."""

    def extras(draw):
        seen = SimpleNamespace(image_embeds=draw(1, width))
        return {"unclip_conditioning": [{"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.0}]}

    return extras


def sd(config, **changes):
    return Family(config, unet(**changes), PICTURE)


def sdxl(config, **changes):
    return Family(config, labelled(2816, **changes), PICTURE, pooled=1280)


def video_family(config, channels):
    return Family(config, video(channels), ((3, 4, 8, 8),), text=(1, 32))


FAMILIES = {
    "SD15": sd(models.SD15),
    "SD15-inpaint": sd(models.SD15, in_channels=9),
    "SD15_instructpix2pix": sd(models.SD15_instructpix2pix, in_channels=8),
    "Stable_Zero123": Family(
        models.Stable_Zero123,
        unet(in_channels=8),
        PICTURE,
        text=(1, 36),
        checkpoint=lambda draw: {"cc_projection.weight": draw(32, 36), "cc_projection.bias": draw(32)},
    ),
    "SD20": Family(models.SD20, wide(), PICTURE),
    "SD20-v": Family(models.SD20, wide(), PICTURE, checkpoint=v_prediction),
    "SD21UnclipL": Family(models.SD21UnclipL, labelled(1536), PICTURE, extras=picture_prompt(768)),
    "SD21UnclipH": Family(models.SD21UnclipH, labelled(2048), PICTURE, extras=picture_prompt(1024)),
    "SD_X4Upscaler": Family(
        models.SD_X4Upscaler,
        unet(
            in_channels=7,
            channel_mult=[1, 1, 1, 1],
            num_res_blocks=[1] * 4,
            transformer_depth=[1] * 4,
            transformer_depth_output=[1] * 8,
        ),
        ((1, 4, 16, 16),),
    ),
    "LotusD": Family(models.LotusD, labelled(4), PICTURE),
    "SDXL": sdxl(models.SDXL),
    "SDXL-v": Family(
        models.SDXL, labelled(2816), PICTURE, pooled=1280, checkpoint=lambda draw: {"v_pred": torch.zeros(0)}
    ),
    "SDXL-edm": Family(
        models.SDXL,
        labelled(2816),
        PICTURE,
        pooled=1280,
        checkpoint=lambda draw: {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)},
    ),
    "SDXL_instructpix2pix": sdxl(models.SDXL_instructpix2pix, in_channels=8),
    "SDXLRefiner": Family(models.SDXLRefiner, labelled(2560), PICTURE, pooled=1280),
    "SSD1B": sdxl(models.SSD1B),
    "Segmind_Vega": sdxl(models.Segmind_Vega),
    "KOALA_700M": sdxl(models.KOALA_700M),
    "KOALA_1B": sdxl(models.KOALA_1B),
    "SVD_img2vid": video_family(models.SVD_img2vid, 768),
    "SV3D_u": video_family(models.SV3D_u, 256),
    "SV3D_p": video_family(models.SV3D_p, 1280),
    "Stable_Cascade_C": Family(
        models.Stable_Cascade_C,
        {
            "stable_cascade_stage": "c",
            "c_cond": 32,
            "c_hidden": [32, 32],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_clip_text": 32,
            "c_clip_text_pooled": 32,
        },
        ((1, 16, 4, 4),),
        pooled=32,
    ),
    "Stable_Cascade_B": Family(
        models.Stable_Cascade_B,
        {
            "stable_cascade_stage": "b",
            "c_cond": 32,
            "c_hidden": [32] * 4,
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1] * 4] * 2,
            "block_repeat": [[1] * 4] * 2,
            "c_clip": 32,
        },
        ((1, 4, 16, 16),),
        pooled=32,
        extras=lambda draw: {"stable_cascade_prior": draw(1, 16, 2, 2)},
    ),
}
