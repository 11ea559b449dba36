"""Layers whose weights are made for each call: streamed to the device, cast, dequantised or patched.

Autograd would keep what was made, a second copy of the model, in memory that ComfyUI may use for the next layer. Here
the reverse pass makes it again. What a layer computes is what it computes without a gradient, down to its kernel; the
gradient is that of the linear map with the layer's weights, whatever the kernel rounds.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from .checkpointing import Context, alias, override_forward, recompute

PULL_BACK = {  # by the dimensions of a convolution's weight
    3: torch.nn.grad.conv1d_input,
    4: torch.nn.grad.conv2d_input,
    5: torch.nn.grad.conv3d_input,
}


@contextmanager
def recompute_weights(network: torch.nn.Module, context: Context):
    """For the length of a pass, autograd keeps no weight of the network that was made for the pass.

    Args:
        context: makes the context in which a layer is evaluated again.
    """
    with ExitStack() as stack:
        for layer in network.modules():
            if _may_make_weights(layer):
                override_forward(stack, layer, partial(_call, layer, layer.forward, context))
        yield


def _may_make_weights(layer: torch.nn.Module) -> bool:
    """Does the layer cast, patch or dequantise? A layer that another pack has taken over (`forward`) is left alone."""
    if not isinstance(layer, comfy.ops.CastWeightBiasOp) or "forward" in layer.__dict__:
        return False
    weight = getattr(layer, "weight", None)
    if weight is None:
        return False
    if not _is_comfyuis(layer):
        return True
    return layer.comfy_cast_weights or bool(layer.weight_function) or isinstance(weight, QuantizedTensor)


def _is_comfyuis(layer: torch.nn.Module) -> bool:
    """Is it one of ComfyUI's own layers, whose way to its weights is known? (Layers of GGUF files are not.)"""
    return type(layer).__module__ == comfy.ops.__name__


def _makes_weights(layer: torch.nn.Module, x: Tensor) -> bool:
    """Will the layer make its weight for this input?"""
    weight = layer.weight
    if not _is_comfyuis(layer):
        return True
    if isinstance(weight, QuantizedTensor) or layer.weight_function or hasattr(layer, "_v"):
        return True
    return weight.dtype != x.dtype or weight.device != x.device


def _call(layer: torch.nn.Module, forward: Callable, context: Context, x: Tensor, *args, **kwargs):
    if not (torch.is_grad_enabled() and x.requires_grad and _makes_weights(layer, x)):
        return forward(x, *args, **kwargs)
    if args or kwargs or not _is_plain_map(layer):
        (out,) = recompute(lambda x: [forward(x, *args, **kwargs)], x, context=context)
        return out
    return _Map.apply(layer, forward, x)


def _is_plain_map(layer: torch.nn.Module) -> bool:
    """Is the layer y = W x + b, or a convolution padded with zeros?"""
    if not _is_comfyuis(layer) or getattr(layer, "pre_quant_scale", None) is not None:
        return False
    if isinstance(layer, torch.nn.modules.conv._ConvNd):
        return not layer.transposed and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer).__name__ == "Linear"


def rounds_activations(network: torch.nn.Module) -> bool:
    """Does a layer compute on 8 or 4 bits, so that the network moves in jumps?"""
    return any(
        _is_fast_fp8(layer)
        or (
            isinstance(getattr(layer, "weight", None), QuantizedTensor)
            and not getattr(layer, "_full_precision_mm", True)
        )
        for layer in network.modules()
    )


def _is_fast_fp8(layer: torch.nn.Module) -> bool:
    return type(layer).__qualname__ == "fp8_ops.Linear"


class _Map(torch.autograd.Function):
    """A linear layer that keeps nothing for its gradient."""

    @staticmethod
    def forward(ctx, layer, forward, x):
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return alias(forward(x.clone() if _is_fast_fp8(layer) else x))  # that one clamps its input in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        layer = ctx.layer
        gradient = gradient.to(ctx.dtype)
        made, bias, stream = comfy.ops.cast_bias_weight(layer, gradient, offloadable=True)
        try:
            weight = made.dequantize() if isinstance(made, QuantizedTensor) else made
            return None, None, _pull_back(layer, weight.to(gradient.dtype), gradient, ctx.shape)
        finally:
            comfy.ops.uncast_bias_weight(layer, made, bias, stream)


def _pull_back(layer: torch.nn.Module, weight: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Wᵀg in the shape of the layer's input."""
    if not isinstance(layer, torch.nn.modules.conv._ConvNd):
        return gradient @ weight
    return PULL_BACK[weight.ndim](shape, weight, gradient, layer.stride, layer.padding, layer.dilation, layer.groups)
