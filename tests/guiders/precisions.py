"""One family in every precision that ComfyUI runs on a CPU, all with the same weights before rounding."""

import json

import comfy.ops
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from pack.tests.families.family import Family, UninitialisedIsNaN, draw_from, randomise

CPU = torch.device("cpu")
QUANTISED = {"scaled fp8": "float8_e4m3fn", "int8": "int8_tensorwise", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}


@torch.inference_mode()
def build(family: Family, precision: str) -> CoreModelPatcher:
    """`precision` is a dtype's name, "fp8", a name in QUANTISED, or one of these followed by "fast": on 8-bit kernels."""
    name, fast = precision.removesuffix(" fast"), precision.endswith(" fast")
    if QUANTISED.get(name, "nvfp4") not in QUANT_ALGOS:
        pytest.skip("this ComfyUI does not have it yet")
    if name in QUANTISED:
        return quantised(family, QUANTISED[name], fast)
    if name != "fp8":
        return family.build(dtype=getattr(torch, name))
    config = family.config(family.unet)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    config.custom_operations = comfy.ops.fp8_ops if fast else None
    draw = draw_from(0)
    with UninitialisedIsNaN():
        model = config.get_model(family.checkpoint(draw), "", device=CPU)
    randomise(model, draw)
    return CoreModelPatcher(model, CPU, CPU)


def quantised(family: Family, algorithm: str, fast: bool) -> CoreModelPatcher:
    """The blocks' linear layers as a quantised checkpoint has them."""
    full = family.build().model.diffusion_model
    config = family.config(family.unet)
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.float32, torch.float32)
    if fast:
        config.custom_operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    model = config.get_model(family.checkpoint(draw_from(0)), "", device=CPU)
    linear = {name for name, layer in full.named_modules() if isinstance(layer, torch.nn.Linear) and "blocks" in name}
    state = {}
    for key, value in full.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if layer in linear and kind == "weight":
            state |= as_quantised(layer, value, algorithm)
        else:
            state[key] = value
    model.diffusion_model.load_state_dict(state)
    return CoreModelPatcher(model, CPU, CPU)


def as_quantised(layer: str, weight: torch.Tensor, algorithm: str) -> dict[str, torch.Tensor]:
    """The entries of a checkpoint for one layer."""
    layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
    scale = {"scale": "recalculate"} if algorithm.startswith("float8") else {}
    about = torch.tensor(list(json.dumps({"format": algorithm}).encode()), dtype=torch.uint8)
    entries = QuantizedTensor.from_float(weight, layout, **scale).state_dict(f"{layer}.weight")
    return entries | {f"{layer}.comfy_quant": about}
