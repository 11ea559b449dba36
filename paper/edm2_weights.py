"""An EDM2 checkpoint as the parameters of its network: sizes, and weights normalised once."""

import math

import torch
from torch import Tensor

from .edm2 import layout, normalize


def folded(weight: Tensor, gain: float = 1.0) -> Tensor:
    """The weight of a layer, [out, ...], as it is used: normalised, over the root of its fan-in (eq. 47), by its gain."""
    weight = normalize(weight.float(), list(range(1, weight.ndim)))
    return weight * (gain / math.sqrt(weight[0].numel()))


def sizes(state: dict[str, Tensor]) -> dict:
    """The arguments of `EDM2` for a checkpoint (without its prefix).

    Raises:
        KeyError: the checkpoint is of another family; the error names what it lacks.
    """
    emb, noise = state["emb_noise.weight"].shape
    levels = sorted({int(name.split(".")[1].split("x")[0]) for name in state if name.startswith("enc.")}, reverse=True)
    first = [f"enc.{level}x{level}_block0" for level in levels]
    return {
        "resolution": levels[0],
        "in_channels": state["out_conv.weight"].shape[0],
        "channels": tuple(state[f"{block}.conv_res1.weight"].shape[0] for block in first),
        "blocks": sum(name.startswith(first[0][:-1]) and name.endswith("conv_res0.weight") for name in state),
        "attention": tuple(f"{block}.attn_qkv.weight" in state for block in first),
        "noise": noise,
        "emb": emb,
        "classes": state["emb_label.weight"].shape[1] if "emb_label.weight" in state else 0,
    }


def prepare(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint (without its prefix) as the parameters of `EDM2`: weights and gains folded, blocks numbered.

    What the noise level and the class pass through stays in float32, as the authors compute it.
    """
    numbers = {
        f"{part}.{name}": f"{part}.{i}"
        for part, blocks in zip(("enc", "dec"), layout(**sizes(state)), strict=True)
        for i, name in enumerate(blocks)
    }
    out = {}
    for name, value in state.items():
        if name.endswith("gain") or name.startswith("logvar"):
            continue
        owner = ".".join(name.split(".")[:2])
        new = name.replace(owner, numbers[owner], 1) if owner in numbers else name
        if name == "emb_label.weight":  # one-hot times the root of their number
            rows = folded(value).T * math.sqrt(value.shape[1])
            out[new] = torch.cat([torch.zeros_like(rows[:1]), rows])
        elif name.startswith("emb_fourier."):
            out[new] = value.float()
        else:
            gain = {"out_conv.weight": "out_gain"}.get(name, name.replace("emb_linear.weight", "emb_gain"))
            weight = folded(value, float(state[gain]) if gain != name else 1.0)
            out[new] = weight.contiguous() if "emb" in name else weight.to(dtype)
    return out
