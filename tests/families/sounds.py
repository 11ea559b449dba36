"""Families that make sound."""

import torch
from comfy import supported_models as models
from comfy.ldm.ace.lyric_encoder import ConformerEncoder

from .family import Family, with_part


def stable_audio(**changes):
    return {
        "audio_model": "dit1.0",
        "io_channels": 64,
        "embed_dim": 64,
        "cond_token_dim": 768,
        "project_cond_tokens": True,
        "global_cond_dim": 1536,
        "depth": 1,
        "num_heads": 2,
        "timestep_features_type": "learned",
    } | changes


def embedder(name, inputs):
    """The checkpoint's entries for one number of seconds, embedded in 768 channels. Their values are drawn later."""
    prefix = f"conditioner.conditioners.{name}.embedder.embedding."
    return {prefix + "1.weight": torch.zeros(768, inputs), prefix + "1.bias": torch.zeros(768)}


def learned_embedder(name):
    return embedder(name, 257) | {f"conditioner.conditioners.{name}.embedder.embedding.0.weights": torch.zeros(128)}


FAMILIES = {
    "StableAudio": Family(
        models.StableAudio,
        stable_audio(),
        ((1, 64, 16),),
        text=(4, 768),
        checkpoint=lambda draw: learned_embedder("seconds_start") | learned_embedder("seconds_total"),
    ),
    "StableAudio3": Family(
        models.StableAudio3,
        stable_audio(
            io_channels=256,
            global_cond_dim=768,
            global_cond_shared_embed=True,
            global_cond_type="adaLN",
            local_add_cond_dim=257,
            timestep_features_type="expo",
        ),
        ((1, 256, 16),),
        text=(4, 768),
        checkpoint=lambda draw: embedder("seconds_total", 256),
    ),
    "ACEStep": Family(
        with_part(
            models.ACEStep,
            "lyric_encoder",
            ConformerEncoder,
            input_size=32,
            output_size=32,
            attention_heads=2,
            linear_units=32,
            num_blocks=1,
            static_chunk_size=0,
        ),
        {
            "audio_model": "ace",
            "attention_head_dim": 16,
            "in_channels": 8,
            "inner_dim": 32,
            "max_height": 16,
            "max_position": 64,
            "max_width": 64,
            "mlp_ratio": 2.0,
            "num_attention_heads": 2,
            "num_layers": 1,
            "out_channels": 8,
            "patch_size": [16, 1],
            "text_embedding_dim": 32,
            "ssl_encoder_depths": [1, 1],
            "ssl_latent_dims": [32, 32],
            "lyric_encoder_vocab_size": 64,
            "lyric_hidden_size": 32,
        },
        ((1, 8, 16, 16),),
        extras=lambda draw: {"conditioning_lyrics": (draw(1, 5).abs() * 10).long()},
    ),
    "ACEStep15": Family(
        models.ACEStep15,
        {
            "audio_model": "ace1.5",
            "hidden_size": 32,
            "text_hidden_dim": 32,
            "num_dit_layers": 1,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "intermediate_size": 32,
            "encoder_hidden_size": 32,
            "encoder_intermediate_size": 32,
            "encoder_num_heads": 2,
            "fsq_dim": 32,
        },
        ((1, 64, 20),),
        extras=lambda draw: {"conditioning_lyrics": draw(1, 5, 32)},
        apart=True,
    ),
}
