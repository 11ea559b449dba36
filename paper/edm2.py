"""EDM2: a U-Net whose layers preserve the magnitude of what passes through them.

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696 (configuration G);
equations by their numbers there. At sampling the weights do not change, so they are normalised once, when they are
loaded (`edm2_weights`): what remains are plain convolutions. Classes are whole numbers, class + 1, and 0 for none.
"""

import math

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

EPSILON = 1e-4
HEAD = 64  # channels
LIMIT = 256  # of activations
RESIDUAL, ATTENTION, LABEL, SKIP = 0.3, 0.3, 0.5, 0.5  # shares of the second summand


def mp_silu(x: Tensor) -> Tensor:
    """SiLU of unit magnitude (eq. 81)."""
    return nn.functional.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A blend of unit magnitude (eq. 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels side by side, each part contributing by its share whatever its width (eq. 103)."""
    n, m = a.shape[1], b.shape[1]
    c = math.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (c / math.sqrt(n) * (1 - t)), b * (c / math.sqrt(m) * t)], dim=1)


def normalize(x: Tensor, dim: int | list[int]) -> Tensor:
    """x of unit magnitude along dim: its root mean square is one."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (EPSILON + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def layout(resolution, in_channels, channels, blocks, attention, **_) -> tuple[dict[str, dict], dict[str, dict]]:
    """The blocks of encoder and decoder: the name that the checkpoint has for each, and the arguments of `Block`."""
    encoder, decoder, skips, width = {}, {}, [], in_channels + 1
    names = [f"{resolution >> level}x{resolution >> level}" for level in range(len(channels))]
    for level, name in enumerate(names):
        if level == 0:
            encoder[f"{name}_conv"] = {"inputs": width, "outputs": channels[0]}
            width = channels[0]
        else:
            encoder[f"{name}_down"] = {"inputs": width, "outputs": width, "resample": "down"}
        skips.append(width)
        for i in range(blocks):
            own = {"inputs": width, "outputs": channels[level], "attention": attention[level]}
            encoder[f"{name}_block{i}"] = own
            width = channels[level]
            skips.append(width)
    for level, name in reversed(list(enumerate(names))):
        same = {"inputs": width, "outputs": width, "decodes": True}
        if level == len(names) - 1:
            decoder |= {f"{name}_in0": {**same, "attention": True}, f"{name}_in1": same}
        else:
            decoder[f"{name}_up"] = {**same, "resample": "up"}
        for i in range(blocks + 1):
            own = {"inputs": width + skips.pop(), "outputs": channels[level], "attention": attention[level]}
            decoder[f"{name}_block{i}"] = {**own, "decodes": True, "takes_skip": True}
            width = channels[level]
    return encoder, decoder


class EDM2(nn.Module):
    """F(x, c_noise): what EDM's preconditioning, which is ComfyUI's, makes a denoised latent of."""

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        channels: tuple[int, ...],
        blocks: int,
        attention: tuple[bool, ...],
        noise: int,
        emb: int,
        classes: int,
        dtype=None,
        device=None,
        operations=None,
    ):
        super().__init__()
        self.dtype, self.resolution = dtype, resolution
        made, exact = {"dtype": dtype, "device": device}, {"dtype": torch.float32, "device": device}
        self.emb_fourier = nn.Module()
        for name in ("freqs", "phases"):
            self.emb_fourier.register_buffer(name, torch.empty(noise, **exact))
        self.emb_noise = operations.Linear(noise, emb, bias=False, **exact)
        self.emb_label = operations.Embedding(classes + 1, emb, **exact) if classes else None
        encoder, decoder = layout(resolution, in_channels, channels, blocks, attention)
        first, *encoder = encoder.values()
        convolution = operations.Conv2d(first["inputs"], first["outputs"], 3, padding=1, bias=False, **made)
        self.enc = nn.ModuleList([convolution, *(Block(emb, operations, made, **block) for block in encoder)])
        self.dec = nn.ModuleList(Block(emb, operations, made, **block) for block in decoder.values())
        self.out_conv = operations.Conv2d(channels[0], in_channels, 3, padding=1, bias=False, **made)

    def forward(self, x, t, context=None, y=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        """x: [batch, channels, h, w] of unit variance; t: [batch], log(σ) / 4; y: [batch, ...] whole numbers -> like x.

        Raises:
            ValueError: the latent is of another size than the checkpoint's.
        """
        if x.shape[-2:] != (self.resolution, self.resolution):
            pixels = self.resolution * (1 if x.shape[1] == 3 else 8)
            raise ValueError(
                f"REG: this EDM2 draws {pixels}x{pixels} pixels and nothing else: set the empty latent to that size."
            )
        emb = self.embed(t, y)
        x = self.enc[0](torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # a channel of ones in place of biases
        skips = [x]
        for block in self.enc[1:]:
            x = block(x, emb, transformer_options=transformer_options)
            skips.append(x)
        for block in self.dec:
            if block.takes_skip:
                x = mp_cat(x, skips.pop(), SKIP)
            x = block(x, emb, transformer_options=transformer_options)
        return self.out_conv(x)

    def embed(self, t: Tensor, y: Tensor) -> Tensor:
        """Noise level (Fourier features of unit magnitude, eq. 75) and class -> [batch, emb] float32."""
        t = t.float()
        freqs, phases = (comfy.ops.cast_to_input(table, t) for table in self.emb_fourier.buffers())
        angles = torch.outer(t, freqs) + phases
        emb = self.emb_noise(angles.cos() * math.sqrt(2))
        if self.emb_label is not None:
            emb = mp_sum(emb, self.emb_label(y.flatten(), out_dtype=torch.float32), LABEL)
        return mp_silu(emb)


class Block(nn.Module):
    """A residual block of the encoder or the decoder, with attention at low resolutions (figure 21 of the paper)."""

    def __init__(
        self, emb, operations, made, inputs, outputs, decodes=False, resample="", attention=False, takes_skip=False
    ):
        super().__init__()
        self.decodes, self.resample, self.takes_skip = decodes, resample, takes_skip

        def convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
            return operations.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **made)

        self.emb_linear = operations.Linear(emb, outputs, bias=False, dtype=torch.float32, device=made["device"])
        self.conv_res0 = convolution(inputs if decodes else outputs, outputs, 3)
        self.conv_res1 = convolution(outputs, outputs, 3)
        self.conv_skip = convolution(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = convolution(outputs, 3 * outputs, 1) if attention else None
        self.attn_proj = convolution(outputs, outputs, 1) if attention else None

    def forward(self, x: Tensor, emb: Tensor, transformer_options: dict) -> Tensor:
        if self.resample == "down":
            x = nn.functional.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        skip = self.conv_skip if self.conv_skip is not None else nn.Identity()
        if not self.decodes:
            x = normalize(skip(x), dim=1)
        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb)[..., None, None] + 1
        y = self.conv_res1(mp_silu(y * c.to(y.dtype)))
        x = mp_sum(skip(x) if self.decodes else x, y, RESIDUAL)
        if self.attn_qkv is not None:
            x = mp_sum(x, self.attend(x, transformer_options), ATTENTION)
        return x.clamp(-LIMIT, LIMIT)

    def attend(self, x: Tensor, transformer_options: dict) -> Tensor:
        """Attention between queries, keys and values of unit magnitude (cosine attention)."""
        batch, channels, height, width = x.shape
        heads = channels // HEAD
        qkv = self.attn_qkv(x).reshape(batch, heads, HEAD, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in normalize(qkv, dim=2).unbind(3))  # [batch, heads, pixels, HEAD]
        y = optimized_attention(q, k, v, heads, skip_reshape=True, transformer_options=transformer_options)
        return self.attn_proj(y.transpose(1, 2).reshape(x.shape))
