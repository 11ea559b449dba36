"""DiT: a transformer on the patches of a latent, conditioned by adaptive layer norms.

Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748. The parameters have the names of the
published checkpoints. Classes are whole numbers, class + 1, and 0 for none, so that no cast to half precision harms them.
"""

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from einops import rearrange
from torch import Tensor, nn

LEARNED_VARIANCE = "reg learned variance"  # in transformer options: a function of a sampler's that is told of it
FREQUENCIES = 256  # of the timestep


def sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """The arguments of `DiT` for a checkpoint.

    Raises:
        KeyError: the checkpoint is of another family; the error names what it lacks.
    """
    hidden, channels, patch, _ = state["x_embedder.proj.weight"].shape
    return {
        "hidden": hidden,
        "in_channels": channels,
        "patch": patch,
        "out_channels": state["final_layer.linear.weight"].shape[0] // patch**2,
        "depth": sum(name.endswith(".attn.qkv.weight") for name in state),
        "heads": 16 if hidden == 1152 else hidden // 64,  # DiT-XL has heads of 72, all others of 64
        "mlp": state["blocks.0.mlp.fc1.weight"].shape[0],
        "tokens": state["pos_embed"].shape[1],
        "classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
    }


class DiT(nn.Module):
    """ε of the noisy latent, and how much variance the sampler's next step should have.

    The variance goes, as (latent, variance, cond_or_uncond), to the function that a sampler has put into the transformer
    options under LEARNED_VARIANCE, and nowhere else: ComfyUI's models predict only what has the latent's shape.
    """

    def __init__(
        self,
        hidden: int,
        in_channels: int,
        patch: int,
        out_channels: int,
        depth: int,
        heads: int,
        mlp: int,
        tokens: int,
        classes: int,
        dtype=None,
        device=None,
        operations=None,
    ):
        super().__init__()
        self.dtype, self.patch, self.channels, self.classes = dtype, patch, in_channels, classes
        made = {"dtype": dtype, "device": device}
        self.x_embedder = nn.Module()
        self.x_embedder.proj = operations.Conv2d(in_channels, hidden, patch, patch, **made)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, hidden, **made), requires_grad=False)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            operations.Linear(FREQUENCIES, hidden, **made), nn.SiLU(), operations.Linear(hidden, hidden, **made)
        )
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = operations.Embedding(classes + 1, hidden, **made)  # the last: no class
        self.blocks = nn.ModuleList(Block(hidden, heads, mlp, operations, made) for _ in range(depth))
        self.final_layer = FinalLayer(hidden, patch**2 * out_channels, operations, made)

    def forward(self, x, t, context=None, y=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        """x: [batch, channels, h, w]; t: [batch], 0 to 999; y: [batch, ...] whole numbers -> like x.

        Raises:
            ValueError: the latent is of another size than the checkpoint's.
        """
        latent, height = x, round(self.pos_embed.shape[1] ** 0.5)
        side = height * self.patch
        if tuple(x.shape[-2:]) != (side, side):
            raise ValueError(
                f"REG: this DiT draws {8 * side}x{8 * side} pixels and nothing else: set the empty latent to that size."
            )
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2)  # [batch, tokens, hidden]
        x = x + comfy.ops.cast_to_input(self.pos_embed, x)
        rows = (y.flatten() - 1) % (self.classes + 1)
        c = self.t_embedder.mlp(timestep_embedding(t, FREQUENCIES).to(x.dtype))
        c = c + self.y_embedder.embedding_table(rows, out_dtype=x.dtype)
        for block in self.blocks:
            x = block(x, c, transformer_options=transformer_options)
        x = rearrange(
            self.final_layer(x, c), "b (h w) (p q c) -> b c (h p) (w q)", h=height, p=self.patch, q=self.patch
        )
        out, variance = x[:, : self.channels], x[:, self.channels :]
        if LEARNED_VARIANCE in transformer_options and variance.shape == out.shape:
            tell = transformer_options[LEARNED_VARIANCE]
            tell((latent.detach(), variance.detach(), transformer_options["cond_or_uncond"]))
        return out


class Block(nn.Module):
    """Attention and MLP, each between a modulated layer norm and a gate (adaLN-Zero)."""

    def __init__(self, hidden: int, heads: int, mlp: int, operations, made: dict):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _norm(hidden, operations, made), _norm(hidden, operations, made)
        self.attn = nn.Module()
        self.attn.qkv = operations.Linear(hidden, 3 * hidden, **made)
        self.attn.proj = operations.Linear(hidden, hidden, **made)
        self.mlp = nn.Module()
        self.mlp.fc1 = operations.Linear(hidden, mlp, **made)
        self.mlp.fc2 = operations.Linear(mlp, hidden, **made)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden, 6 * hidden, **made))

    def forward(self, x: Tensor, c: Tensor, transformer_options: dict) -> Tensor:
        """x: [batch, tokens, hidden]; c: [batch, hidden]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        q, k, v = self.attn.qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, -1)
        attended = optimized_attention(q, k, v, self.heads, transformer_options=transformer_options)
        x = x + gate1 * self.attn.proj(attended)
        hidden = nn.functional.gelu(self.mlp.fc1(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.mlp.fc2(hidden)


class FinalLayer(nn.Module):
    """Tokens to patches of pixels."""

    def __init__(self, hidden: int, out: int, operations, made: dict):
        super().__init__()
        self.norm_final = _norm(hidden, operations, made)
        self.linear = operations.Linear(hidden, out, **made)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden, 2 * hidden, **made))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def _norm(hidden: int, operations, made: dict) -> nn.Module:
    return operations.LayerNorm(hidden, elementwise_affine=False, eps=1e-6, **made)
