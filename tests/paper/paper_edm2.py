"""EDM2 as its paper writes it (arXiv 2312.02696, configuration G), on a raw checkpoint: nothing of the pack.

Weights are normalised at every use, classes are one-hot vectors times the root of their number, everything is float64.
"""

import torch


def unit(x, dims):
    """x / (1e-4 + ‖x‖ / √N), N the number of values along dims."""
    count = 1
    for d in dims:
        count *= x.shape[d]
    return x / (1e-4 + (x * x).sum(dims, keepdim=True).sqrt() / count**0.5)


def layer(state, name, x, gain=1.0):
    """A fully connected layer or a convolution with its weight normalised and scaled by 1 / √fan-in."""
    w = state[name + ".weight"]
    w = unit(w, list(range(1, w.ndim))) / w[0].numel() ** 0.5 * gain
    if w.ndim == 2:
        return x @ w.T
    return torch.nn.functional.conv2d(x, w, padding=w.shape[-1] // 2)


def silu(x):
    return x * torch.sigmoid(x) / 0.596


def plus(a, b, t):
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def beside(a, b, t=0.5):
    n, m = a.shape[1], b.shape[1]
    scale = ((n + m) / ((1 - t) ** 2 + t**2)) ** 0.5
    return torch.cat([scale * (1 - t) / n**0.5 * a, scale * t / m**0.5 * b], 1)


def attention(state, name, x):
    batch, channels, height, width = x.shape
    y = layer(state, f"{name}.attn_qkv", x).reshape(batch, channels // 64, 64, 3, height * width)
    q, k, v = unit(y, [2]).unbind(3)
    weights = torch.einsum("nhcq,nhck->nhqk", q, k / 64**0.5).softmax(3)
    y = torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(x.shape)
    return plus(x, layer(state, f"{name}.attn_proj", y), 0.3)


def block(state, name, x, emb):
    decodes = name.startswith("dec")
    if name.endswith("down"):
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    if name.endswith("up"):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    has_skip = f"{name}.conv_skip.weight" in state
    if not decodes:
        x = unit(layer(state, f"{name}.conv_skip", x) if has_skip else x, [1])
    y = layer(state, f"{name}.conv_res0", silu(x))
    c = layer(state, f"{name}.emb_linear", emb, state[f"{name}.emb_gain"]) + 1
    y = layer(state, f"{name}.conv_res1", silu(y * c[:, :, None, None]))
    if decodes and has_skip:
        x = layer(state, f"{name}.conv_skip", x)
    x = plus(x, y, 0.3)
    if f"{name}.attn_qkv.weight" in state:
        x = attention(state, name, x)
    return x.clip(-256, 256)


def denoise(state, x, sigma, label=None, sigma_data=0.5):
    """D(x; σ) with EDM's preconditioning. x: [batch, ...]; sigma: a number; label: [batch, classes] one-hot, or None.

    `state` must name its blocks in the order in which they are evaluated.
    """
    state = {name.removeprefix("unet."): value.double() for name, value in state.items() if name.startswith("unet.")}
    x, sigma = x.double(), torch.as_tensor(sigma, dtype=torch.float64)
    total = (sigma**2 + sigma_data**2).sqrt()
    angles = torch.log(sigma) / 4 * state["emb_fourier.freqs"] + state["emb_fourier.phases"]
    emb = layer(state, "emb_noise", 2**0.5 * torch.cos(angles)[None]).expand(len(x), -1)
    if "emb_label.weight" in state:
        classes = state["emb_label.weight"].shape[1]
        label = torch.zeros(len(x), classes) if label is None else label
        emb = plus(emb, layer(state, "emb_label", label.double() * classes**0.5), 0.5)
    emb = silu(emb)
    h = torch.cat([x / total, torch.ones_like(x[:, :1])], 1)
    names = list(dict.fromkeys(".".join(n.split(".")[:2]) for n in state if n.startswith(("enc", "dec"))))
    skips = []
    for name in names:
        if name.endswith("conv"):
            h = layer(state, name, h)
        else:
            if name.startswith("dec") and "block" in name:
                h = beside(h, skips.pop())
            h = block(state, name, h, emb)
        if name.startswith("enc"):
            skips.append(h)
    f = layer(state, "out_conv", h, state["out_gain"])
    return sigma_data**2 / total**2 * x + sigma * sigma_data / total * f
