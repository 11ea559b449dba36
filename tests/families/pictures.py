"""Transformers that make pictures, in latents or in pixels."""

import torch
from comfy import supported_models as models
from comfy.ldm.anima.model import LLMAdapter

from .family import Family, with_part, with_unet

ROPE = [4, 6, 6]  # channels a head gives to each axis; heads are 16 wide


def latent(channels, side=8):
    return ((1, channels, side, side),)


def text_mask(draw):
    """The last of four tokens is padding."""
    return {"attention_mask": torch.tensor([[1, 1, 1, 0]])}


def whole_text(draw):
    return {"attention_mask": torch.ones(1, 4, dtype=torch.long)}


def sd3(**changes):
    return {
        "input_size": None,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "depth": 1,
        "num_blocks": 2,
        "adm_in_channels": 32,
        "num_patches": 64,
        "pos_embed_max_size": 8,
        "pos_embed_scaling_factor": None,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
    } | changes


def flux(**changes):
    return {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "axes_dim": ROPE,
        "theta": 10000,
        "depth": 1,
        "depth_single_blocks": 1,
        "mlp_ratio": 2.0,
        "qkv_bias": True,
        "vec_in_dim": 32,
        "context_in_dim": 32,
        "txt_ids_dims": [],
        "guidance_embed": True,
    } | changes


FLUX2 = flux(
    image_model="flux2",
    in_channels=128,
    out_channels=128,
    patch_size=1,
    axes_dim=[4] * 4,
    theta=2000,
    qkv_bias=False,
    vec_in_dim=None,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    guidance_embed=False,
)


def chroma(**changes):
    config = flux(
        image_model="chroma",
        in_channels=64,
        out_channels=64,
        vec_in_dim=None,
        in_dim=64,
        out_dim=32,
        hidden_dim=32,
        n_layers=1,
        **changes,
    )
    del config["guidance_embed"]
    return config


RADIANCE = chroma() | {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}


def lumina(**changes):
    return {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": 32,
        "cap_feat_dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "qk_norm": True,
        "n_heads": 2,
        "n_kv_heads": 1,
        "axes_dims": ROPE,
        "axes_lens": [32, 16, 16],
        "multiple_of": 16,
        "ffn_dim_multiplier": 1.0,
    } | changes


# The modulation of Z-Image is 256 wide whatever the model is.
Z_IMAGE = dict(
    dim=256,
    n_heads=16,
    n_kv_heads=16,
    ffn_dim_multiplier=0.25,
    rope_theta=256.0,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=8,
)


def pixart(**changes):
    return {
        "num_heads": 2,
        "patch_size": 2,
        "hidden_size": 48,
        "in_channels": 4,
        "depth": 1,
        "mlp_ratio": 2.0,
        "caption_channels": 32,
        "model_max_length": 8,
        "input_size": 40,
        "pe_interpolation": 1,
    } | changes


PIXART = latent(4, 40)  # ComfyUI divides by round(side / 64)


def size_prompt(draw):
    return {"width": 64, "height": 96}


def hunyuan_dit(**changes):
    return {
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "text_states_dim": 32,
        "text_states_dim_t5": 32,
        "text_len": 4,
        "text_len_t5": 6,
    } | changes


def two_texts(draw):
    return {
        "conditioning_mt5xl": draw(1, 6, 32),
        "attention_mask": torch.ones(1, 4),
        "attention_mask_mt5xl": torch.ones(1, 6),
    }


def predict2(**changes):
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": 16,
        "max_img_w": 16,
        "max_frames": 8,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "concat_padding_mask": True,
        "model_channels": 32,
        "num_blocks": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "crossattn_emb_channels": 32,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "rope_enable_fps_modulation": False,
    } | changes


FAMILIES = {
    "SD3": Family(models.SD3, sd3(), latent(16), pooled=32),
    "SD35": Family(models.SD3, sd3(qk_norm="rms", x_block_self_attn_layers=[0]), latent(16), pooled=32),
    "Flux": Family(models.Flux, flux(), latent(16), pooled=32),
    "FluxInpaint": Family(models.FluxInpaint, flux(in_channels=96), latent(16), pooled=32),
    "FluxSchnell": Family(models.FluxSchnell, flux(guidance_embed=False), latent(16), pooled=32),
    "LongCatImage": Family(
        models.LongCatImage, flux(guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2]), latent(16)
    ),
    "Flux2": Family(models.Flux2, FLUX2, latent(128, 4)),
    "Chroma": Family(models.Chroma, chroma(), latent(16)),
    "ChromaRadiance": Family(models.ChromaRadiance, RADIANCE, latent(3, 16)),
    "AuraFlow": Family(
        models.AuraFlow,
        {
            "dim": 32,
            "n_layers": 2,
            "n_double_layers": 1,
            "n_heads": 2,
            "global_conddim": 32,
            "cond_seq_dim": 32,
            "max_seq": 64,
        },
        latent(4),
    ),
    "PixArtAlpha": Family(
        models.PixArtAlpha, pixart(image_model="pixart_alpha", micro_condition=True), PIXART, extras=size_prompt
    ),
    "PixArtSigma": Family(models.PixArtSigma, pixart(image_model="pixart_sigma", micro_condition=False), PIXART),
    "HunyuanDiT": Family(models.HunyuanDiT, hunyuan_dit(image_model="hydit"), latent(4), extras=two_texts),
    "HunyuanDiT1": Family(
        models.HunyuanDiT1,
        hunyuan_dit(image_model="hydit1", size_cond=True, use_style_cond=True),
        latent(4),
        extras=two_texts,
    ),
    "Lumina2": Family(models.Lumina2, lumina(), latent(16), extras=text_mask),
    "ZImage": Family(models.ZImage, lumina(**Z_IMAGE), latent(16)),
    "ZImagePixelSpace": Family(
        models.ZImagePixelSpace,
        lumina(
            **Z_IMAGE,
            image_model="zimage_pixel",
            patch_size=4,
            in_channels=3,
            decoder_in_channels=48,
            decoder_hidden_size=32,
            decoder_num_res_blocks=1,
            decoder_max_freqs=4,
        ),
        latent(3, 16),
    ),
    "PixelDiTT2I": Family(
        models.PixelDiTT2I,
        {
            "image_model": "pixeldit_t2i",
            "num_groups": 2,
            "hidden_size": 32,
            "pixel_hidden_size": 4,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 1,
            "pixel_depth": 1,
            "patch_size": 4,
            "txt_embed_dim": 32,
            "txt_max_length": 8,
        },
        latent(3, 16),
    ),
    "PiD": Family(
        models.PiD,
        {
            "image_model": "pid",
            "num_groups": 2,
            "hidden_size": 32,
            "pixel_hidden_size": 4,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 2,
            "pixel_depth": 1,
            "patch_size": 16,
            "txt_embed_dim": 32,
            "txt_max_length": 8,
            "lq_latent_channels": 4,
            "lq_hidden_dim": 16,
            "lq_num_res_blocks": 1,
        },
        latent(3, 64),
        extras=lambda draw: {"lq_latent": draw(1, 4, 2, 2), "degrade_sigma": torch.tensor([0.1])},
    ),
    "CosmosT2IPredict2": Family(models.CosmosT2IPredict2, predict2(), ((1, 16, 1, 8, 8),)),
    "CosmosI2VPredict2": Family(models.CosmosI2VPredict2, predict2(in_channels=17), ((1, 16, 2, 8, 8),)),
    "Anima": Family(
        with_part(
            models.Anima,
            "llm_adapter",
            LLMAdapter,
            source_dim=32,
            target_dim=32,
            model_dim=32,
            num_layers=1,
            num_heads=2,
        ),
        predict2(image_model="anima"),
        ((1, 16, 1, 8, 8),),
        extras=lambda draw: {"t5xxl_ids": (draw(4).abs() * 1000).long(), "t5xxl_weights": torch.ones(4)},
    ),
    "HiDream": Family(
        models.HiDream,
        {
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "caption_channels": [32, 32],
            "text_emb_dim": 32,
            "num_routed_experts": 2,
            "num_activated_experts": 2,  # all, for a choice between them would be a jump
            "axes_dims_rope": [8, 4, 4],
            "max_resolution": [8, 8],
            "llama_layers": [0, 1],
        },
        latent(16),
        pooled=32,
        extras=lambda draw: {"conditioning_llama3": draw(1, 2, 4, 32)},
    ),
    "HiDreamO1": Family(
        models.HiDreamO1,
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "rope_dims": [4, 2, 2],
            },
            "vision_config_overrides": {
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 32,
                "depth": 1,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [],
            },
        },
        latent(3, 64),
        extras=lambda draw: {"text_input_ids": (draw(1, 6).abs() * 1000).long()},
    ),
    "Omnigen2": Family(
        models.Omnigen2,
        {
            "image_model": "omnigen2",
            "patch_size": 2,
            "in_channels": 16,
            "hidden_size": 32,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": ROPE,
            "axes_lens": [32, 16, 16],
            "text_feat_dim": 32,
            "timestep_scale": 1000.0,
        },
        latent(16),
        extras=whole_text,
    ),
    "Boogu": Family(
        models.Boogu,
        {
            "image_model": "boogu",
            "patch_size": 2,
            "in_channels": 16,
            "hidden_size": 32,
            "num_layers": 1,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": ROPE,
            "axes_lens": [32, 16, 16],
            "instruction_feat_dim": 32,
        },
        latent(16),
        extras=whole_text,
    ),
    "MageFlow": Family(
        models.MageFlow,
        {
            "image_model": "mage_flow",
            "in_channels": 128,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": ROPE,
        },
        latent(128, 4),
    ),
    "QwenImage": Family(
        models.QwenImage,
        {
            "image_model": "qwen_image",
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": ROPE,
        },
        ((1, 16, 1, 8, 8),),
    ),
    "JoyImage": Family(
        with_unet(models.JoyImage, rope_dim_list=ROPE),
        {
            "image_model": "joyimage",
            "in_channels": 16,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 32,
            "mlp_width_ratio": 1.0,
            "num_layers": 1,
            "patch_size": [1, 2, 2],
        },
        ((1, 16, 1, 8, 8),),
    ),
    "Ideogram4": Family(
        with_unet(
            models.Ideogram4,
            num_attention_heads=2,
            attention_head_dim=16,
            intermediate_size=32,
            adaln_dim=32,
            llm_features_dim=32,
            mrope_section=[4, 2, 2],
        ),
        {"image_model": "ideogram4", "in_channels": 128, "num_layers": 1},
        latent(128, 4),
    ),
    "Krea2": Family(
        models.Krea2,
        {
            "image_model": "krea2",
            "features": 32,
            "tdim": 32,
            "txtdim": 32,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 1,
            "channels": 16,
            "patch": 2,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        ((1, 16, 1, 8, 8),),
        text=(4, 64),
    ),
    "Lens": Family(
        models.Lens,
        {
            "image_model": "lens",
            "in_channels": 128,
            "out_channels": 32,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "enc_hidden_dim": 32,
            "axes_dims_rope": ROPE,
            "selected_layer_index": (0, 1),
        },
        latent(128, 4),
        text=(4, 64),
    ),
    "ErnieImage": Family(
        models.ErnieImage,
        {
            "image_model": "ernie",
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 32,
            "text_in_dim": 32,
            "rope_axes_dim": ROPE,
        },
        latent(128, 4),
    ),
}
