"""Tiny random checkpoints in the formats of the published ones, and single evaluations of the models made of them."""

import torch
from safetensors.torch import save_file

from pack.paper import dit, edm2

CLASSES = 10
DIT = {"hidden": 64, "in_channels": 4, "patch": 2, "out_channels": 8, "depth": 2, "heads": 1, "mlp": 256}
EDM2 = {"resolution": 8, "channels": (64, 128), "blocks": 1, "attention": (False, True), "noise": 64, "emb": 128}


def normal(shapes: dict, scale: float, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dit_state(seed: int = 0, tokens: int = 16, **changes) -> dict:
    """A DiT's state dict, of weights large enough that all of them matter."""
    config = DIT | {"tokens": tokens, "classes": CLASSES} | changes
    network = dit.DiT(**config, device="meta", operations=torch.nn)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    return normal(shapes, 0.8 / config["hidden"] ** 0.5, seed)


def edm2_state(seed: int = 0, in_channels: int = 4, classes: int = CLASSES, **changes) -> dict:
    """An EDM2's state dict with the authors' names, its prefix included, and gains that are not zero."""
    config = EDM2 | {"in_channels": in_channels} | changes
    emb, noise, channels = config["emb"], config["noise"], config["channels"]
    shapes = {"emb_fourier.freqs": [noise], "emb_fourier.phases": [noise], "emb_noise.weight": [emb, noise]}
    if classes:
        shapes["emb_label.weight"] = [emb, classes]
    for part, blocks in zip(("enc", "dec"), edm2.layout(**config), strict=True):
        for name, block in blocks.items():
            inputs, outputs, at = block["inputs"], block["outputs"], f"{part}.{name}"
            if name.endswith("_conv"):
                shapes[f"{at}.weight"] = [outputs, inputs, 3, 3]
                continue
            first = inputs if part == "dec" else outputs
            shapes |= {f"{at}.emb_gain": [], f"{at}.emb_linear.weight": [outputs, emb]}
            shapes |= {
                f"{at}.conv_res0.weight": [outputs, first, 3, 3],
                f"{at}.conv_res1.weight": [outputs, outputs, 3, 3],
            }
            if inputs != outputs:
                shapes[f"{at}.conv_skip.weight"] = [outputs, inputs, 1, 1]
            if block.get("attention"):
                shapes[f"{at}.attn_qkv.weight"] = [3 * outputs, outputs, 1, 1]
                shapes[f"{at}.attn_proj.weight"] = [outputs, outputs, 1, 1]
    shapes |= {"out_conv.weight": [in_channels, channels[0], 3, 3], "out_gain": []}
    state = {f"unet.{name}": value for name, value in normal(shapes, 1.0, seed).items()}
    return {**state, "logvar_fourier.freqs": torch.randn(8), "logvar_linear.weight": torch.randn(1, 8)}


def encoder(channels: int = 4) -> dict:
    """The scale and bias of the latents of an EDM2."""
    return {"encoder.scale": torch.linspace(0.1, 0.2, channels), "encoder.bias": torch.linspace(-0.5, 0.5, channels)}


def save(state: dict, path) -> str:
    """A checkpoint file, by the ending of its name."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def latent(batch: int = 2, channels: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
