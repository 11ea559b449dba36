"""Families that make videos, some with sound."""

from types import SimpleNamespace

from comfy import supported_models as models
from comfy.ldm.wan.model import AudioProjModel

from .family import Family, draw_from, with_part
from .pictures import ROPE, flux, text_mask

VIDEO = ((1, 16, 2, 8, 8),)  # [batch, channels, frames, height, width]


def wan(**changes):
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": (1, 2, 2),
        "text_len": 8,
        "in_dim": 16,
        "dim": 32,
        "ffn_dim": 32,
        "freq_dim": 32,
        "text_dim": 32,
        "out_dim": 16,
        "num_heads": 2,
        "num_layers": 1,
    } | changes


def wan_video(config, extras=lambda draw: {}, latents=VIDEO, **changes):
    return Family(config, wan(**changes), latents, extras=extras)


def first_picture(draw):
    """What a CLIP vision model saw in the first frame."""
    return {
        "clip_vision_output": SimpleNamespace(
            penultimate_hidden_states=draw(1, 3, 1280), last_hidden_state=draw(1, 3, 1280)
        )
    }


def reference(draw):
    return {"reference_latents": [draw(1, 16, 1, 8, 8)]}


def hunyuan(**changes):
    return (
        flux(
            image_model="hunyuan_video",
            patch_size=[1, 2, 2],
            meanflow=False,
            use_cond_type_embedding=False,
            vision_in_dim=None,
            meanflow_sum=False,
            byt5=False,
        )
        | changes
    )


def hunyuan_video(config, **changes):
    changes = {key: value for key, value in hunyuan(**changes).items() if key != "txt_ids_dims"}
    return Family(config, changes, VIDEO, pooled=32)


NEW_HUNYUAN = dict(vec_in_dim=None, guidance_embed=False, byt5=True)


def hunyuan_text(latents, config, **changes):
    family = hunyuan_video(config, **NEW_HUNYUAN | changes)
    return Family(
        config, family.unet, latents, extras=lambda draw: {"conditioning_byt5small": draw(1, 3, 1472)}, pooled=32
    )


def cosmos(**changes):
    return {
        "image_model": "cosmos",
        "max_img_h": 16,
        "max_img_w": 16,
        "max_frames": 8,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 32,
        "num_blocks": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "block_x_format": "THWBD",
        "crossattn_emb_channels": 32,
        "pos_emb_cls": "rope3d",
        "affline_emb_norm": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable",
    } | changes


LTX = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "caption_channels": 32,
    "num_layers": 1,
}


def cogvideo(**changes):
    return {
        "image_model": "cogvideox",
        "num_attention_heads": 3,
        "attention_head_dim": 32,
        "time_embed_dim": 32,
        "text_embed_dim": 32,
        "num_layers": 1,
        "max_text_seq_length": 4,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
    } | changes


def kandinsky(**changes):
    return {
        "image_model": "kandinsky5",
        "in_text_dim": 32,
        "in_text_dim2": 32,
        "time_dim": 32,
        "model_dim": 32,
        "ff_dim": 32,
        "visual_embed_dim": 132,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": ROPE,
    } | changes


FAMILIES = {
    "WAN21_T2V": wan_video(models.WAN21_T2V),
    "WAN21_CausalAR_T2V": wan_video(models.WAN21_CausalAR_T2V),
    "WAN21_I2V": wan_video(models.WAN21_I2V, first_picture, model_type="i2v", in_dim=36),
    "WAN21_FunControl2V": wan_video(models.WAN21_FunControl2V, first_picture, model_type="i2v", in_dim=48),
    "WAN21_Camera": wan_video(
        models.WAN21_Camera,
        lambda draw: first_picture(draw) | {"camera_conditions": draw(1, 24, 2, 64, 64)},
        model_type="camera",
        in_dim=32,
    ),
    "WAN22_Camera": wan_video(
        models.WAN22_Camera,
        lambda draw: {"camera_conditions": draw(1, 24, 2, 64, 64)},
        model_type="camera_2.2",
        in_dim=36,
    ),
    "WAN21_Vace": wan_video(
        models.WAN21_Vace,
        lambda draw: {
            "vace_frames": [draw(1, 32, 2, 8, 8)],
            "vace_mask": [draw(1, 64, 2, 8, 8)],
            "vace_strength": [1.0],
        },
        model_type="vace",
        vace_layers=1,
        vace_in_dim=96,
    ),
    "WAN21_HuMo": wan_video(
        with_part(
            models.WAN21_HuMo,
            "audio_proj",
            AudioProjModel,
            seq_len=8,
            blocks=5,
            channels=4,
            intermediate_dim=16,
            output_dim=1536,
            context_tokens=16,
        ),
        lambda draw: reference(draw) | {"audio_embed": draw(1, 3, 8, 5, 4)},
        model_type="humo",
    ),
    "WAN22_S2V": wan_video(
        models.WAN22_S2V,
        lambda draw: reference(draw) | {"audio_embed": draw(1, 25, 32, 8)},
        model_type="s2v",
        audio_dim=32,
    ),
    "WAN22_Animate": wan_video(
        models.WAN22_Animate,
        lambda draw: first_picture(draw) | {"pose_video_latent": draw(1, 16, 1, 8, 8)},
        model_type="animate",
        in_dim=36,
    ),
    "WAN22_T2V": wan_video(models.WAN22_T2V, latents=((1, 48, 2, 8, 8),), in_dim=48, out_dim=48),
    "WAN21_FlowRVS": Family(models.WAN21_FlowRVS, wan(model_type="flow_rvs"), VIDEO, starts_from_latent=True),
    "WAN21_SCAIL": wan_video(
        models.WAN21_SCAIL,
        lambda draw: reference(draw) | first_picture(draw) | {"pose_video_latent": draw(1, 16, 2, 4, 4)},
        model_type="scail",
        in_dim=20,
    ),
    "WAN21_SCAIL2": wan_video(
        models.WAN21_SCAIL2, lambda draw: reference(draw) | first_picture(draw), model_type="scail2", in_dim=20
    ),
    "WAN22_WanDancer": wan_video(
        models.WAN22_WanDancer,
        first_picture,
        model_type="wandancer",
        in_dim=36,
        music_dim=32,
        music_heads=2,
        music_feature_dim=8,
        music_latent_dim=32,
    ),
    "HunyuanVideo": hunyuan_video(models.HunyuanVideo),
    "HunyuanVideoI2V": hunyuan_video(models.HunyuanVideoI2V, in_channels=33),
    "HunyuanVideoSkyreelsI2V": hunyuan_video(models.HunyuanVideoSkyreelsI2V, in_channels=32),
    "HunyuanImage21": hunyuan_text(
        ((1, 64, 8, 8),), models.HunyuanImage21, in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[8, 8]
    ),
    "HunyuanImage21Refiner": hunyuan_text(
        ((1, 64, 1, 4, 4),),
        models.HunyuanImage21Refiner,
        in_channels=128,
        out_channels=64,
        patch_size=[1, 1, 1],
        meanflow=True,
    ),
    "HunyuanVideo15": hunyuan_text(
        ((1, 32, 2, 4, 4),),
        models.HunyuanVideo15,
        in_channels=65,
        out_channels=32,
        patch_size=[1, 1, 1],
        vision_in_dim=32,
        use_cond_type_embedding=True,
        meanflow_sum=True,
    ),
    "HunyuanVideo15_SR_Distilled": hunyuan_text(
        ((1, 32, 2, 4, 4),),
        models.HunyuanVideo15_SR_Distilled,
        in_channels=98,
        out_channels=32,
        patch_size=[1, 1, 1],
        vision_in_dim=32,
        use_cond_type_embedding=True,
        meanflow=True,
        meanflow_sum=True,
    ),
    "CosmosT2V": Family(models.CosmosT2V, cosmos(), VIDEO),
    "CosmosI2V": Family(models.CosmosI2V, cosmos(in_channels=17), VIDEO),
    "LTXV": Family(models.LTXV, LTX, ((1, 128, 2, 4, 4),), extras=text_mask),
    "LTXAV": Family(
        models.LTXAV,
        LTX
        | {
            "image_model": "ltxav",
            "audio_cross_attention_dim": 32,
            "audio_attention_head_dim": 16,
            "audio_num_attention_heads": 2,
            "connector_attention_head_dim": 16,
            "connector_num_attention_heads": 2,
            "connector_num_layers": 1,
        },
        ((1, 128, 2, 4, 4), (1, 8, 4, 16)),
        text=(4, 64),
    ),
    "MiniMaxH3": Family(
        models.MiniMaxH3,
        {
            "image_model": "minimax_h3",
            "hidden_size": 32,
            "num_layers": 1,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "ffn_hidden_size": 32,
            "text_dim": 48,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 32,
            "time_embed_dim": 32,
            "rope_inv_freq_len": 2,
        },
        ((1, 24, 2, 8, 8), (1, 32, 2, 4)),
        text=(4, 48),
    ),
    "GenmoMochi": Family(
        models.GenmoMochi,
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 32,
            "hidden_size_y": 16,
            "mlp_ratio_x": 384.0,
            "mlp_ratio_y": 2.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "patch_embed_bias": True,
            "posenc_preserve_area": True,
            "timestep_mlp_bias": True,
            "attend_to_padding": False,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": 32,
            "t5_token_length": 4,
        },
        ((1, 12, 2, 8, 8),),
        extras=text_mask,
    ),
    "CogVideoX_T2V": Family(models.CogVideoX_T2V, cogvideo(), VIDEO),
    "CogVideoX_I2V": Family(
        models.CogVideoX_I2V, cogvideo(in_channels=32, use_rotary_positional_embeddings=True), VIDEO
    ),
    "CogVideoX_Inpaint": Family(
        models.CogVideoX_Inpaint, cogvideo(in_channels=48, use_rotary_positional_embeddings=True), VIDEO
    ),
    "Kandinsky5": Family(models.Kandinsky5, kandinsky(), VIDEO, pooled=32),
    "Kandinsky5Image": Family(models.Kandinsky5Image, kandinsky(visual_embed_dim=64), ((1, 16, 1, 8, 8),), pooled=32),
    "SeedVR2": Family(
        models.SeedVR2,
        {
            "image_model": "seedvr2",
            "norm_eps": 1e-5,
            "num_layers": 2,
            "mlp_type": "swiglu",
            "vid_dim": 32,
            "heads": 2,
            "head_dim": 16,
            "mm_layers": 1,
            "expand_ratio": 2,
            "rope_dim": 12,
            "vid_out_norm": True,
        },
        VIDEO,
        text=(4, 5120),
        extras=lambda draw: {"condition": draw_from(9)(1, 17, 2, 8, 8)},  # the same video for both prompts
        apart=True,
    ),
}
