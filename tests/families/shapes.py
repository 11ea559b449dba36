"""Families that make 3-D shapes."""

from comfy import supported_models as models

from .family import Family


def hunyuan_3d(**changes):
    return {
        "image_model": "hunyuan3d2",
        "in_channels": 64,
        "context_in_dim": 32,
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 4,
        "depth": 1,
        "depth_single_blocks": 1,
        "qkv_bias": True,
        "guidance_embed": False,
    } | changes


FAMILIES = {
    "Hunyuan3Dv2": Family(models.Hunyuan3Dv2, hunyuan_3d(), ((1, 64, 8),)),
    "Hunyuan3Dv2mini": Family(models.Hunyuan3Dv2mini, hunyuan_3d(guidance_embed=True), ((1, 64, 8),)),
    "Hunyuan3Dv2_1": Family(
        models.Hunyuan3Dv2_1,
        {
            "image_model": "hunyuan3d2_1",
            "in_channels": 64,
            "context_dim": 32,
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "qkv_bias": False,
            "guidance_cond_proj_dim": None,
            "num_moe_layers": 1,
            "num_experts": 2,
            "moe_top_k": 2,  # all, for a choice between them would be a jump
        },
        ((1, 64, 8),),
    ),
    "TripoSplat": Family(
        models.TripoSplat,
        {
            "image_model": "triposplat",
            "q_token_length": 16,
            "model_channels": 64,
            "cond_channels": 32,
            "num_blocks": 1,
            "num_refiner_blocks": 1,
            "num_heads": 4,
            "num_head_channels": 16,
            "mlp_ratio": 1,
        },
        ((1, 16, 16), (1, 1, 5)),
        extras=lambda draw: {"reference_latents": [draw(1, 128, 1, 2)]},
    ),
}
