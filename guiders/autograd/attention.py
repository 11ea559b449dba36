"""Attention in a differentiated pass: what it computes is what ComfyUI computes, and its gradient is PyTorch's.

flash-attn and SageAttention have forward kernels only, and some lose the gradient without a word.
"""

from collections.abc import Callable

import comfy.ldm.modules.attention
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .checkpointing import Context, recompute

SLOT = "optimized_attention_override"
WITH_GRADIENT = {f"attention_{name}" for name in ("basic", "split", "sub_quad", "pytorch", "xformers")}
SAME = 0.1  # relative difference between attention as a patch computes it and PyTorch's: above an 8-bit kernel's


def differentiable(model_options: dict, context: Context) -> dict:
    """A copy of model_options whose attention has a gradient.

    An override that another pack put there stays in charge, and is handed PyTorch's kernel as the one to call.

    Args:
        context: makes the context in which attention is evaluated again.
    """
    options = dict(model_options.get("transformer_options", {}))
    options[SLOT] = Attention(options.get(SLOT), context)
    return {**model_options, "transformer_options": options}


def kernel_is_unknown() -> bool:
    """Does ComfyUI run on a kernel without a gradient? Some models call it where no override reaches it."""
    return not _has_gradient(comfy.ldm.modules.attention.optimized_attention)


def _has_gradient(kernel: Callable) -> bool:
    return getattr(kernel, "__name__", "") in WITH_GRADIENT


class Attention:
    """An override of one differentiated pass."""

    def __init__(self, theirs: Callable | None, context: Context):
        self.theirs = theirs  # the override of another pack
        self.context = context
        self.compared = False  # has theirs been found to be a kernel and nothing else?

    def __call__(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        """`func` and the rest are what ComfyUI calls an override with.

        Raises:
            RuntimeError: an override without a gradient does more than attention.
        """

        def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention_pytorch(q, k, v, *args, **kwargs)

        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))):
            return self.theirs(func, q, k, v, *args, **kwargs) if self.theirs else func(q, k, v, *args, **kwargs)
        if self.theirs is not None:
            return self._by_theirs(exact, q, k, v, *args, **kwargs)
        if _has_gradient(func):
            return exact(q, k, v)
        return with_gradient_of(exact, lambda q, k, v: func(q, k, v, *args, **kwargs), self.context, q, k, v)

    def _by_theirs(self, exact: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        called = False

        def ours(*args, **kwargs):
            nonlocal called
            called = True
            return attention_pytorch(*args, **kwargs)

        out = self.theirs(ours, q, k, v, *args, **kwargs)
        if called or out.requires_grad:
            return out
        if not self.compared:
            self._compare(out, exact(*(t.detach() for t in (q, k, v))))
        return with_gradient_of(exact, lambda q, k, v: out.clone(), self.context, q, k, v)

    def _compare(self, out: Tensor, exact: Tensor) -> None:
        if (out - exact).norm() > SAME * exact.norm():
            raise RuntimeError("an attention patch without a gradient does more than attention")
        self.compared = True


def with_gradient_of(exact: Callable, kernel: Callable, context: Context, *tensors: Tensor) -> Tensor:
    """What `kernel` computes, with the gradient of `exact`, which is evaluated within `context` in the reverse pass."""

    def evaluate(*tensors: Tensor) -> list[Tensor]:
        return [exact(*tensors) if torch.is_grad_enabled() else kernel(*tensors)]

    (out,) = recompute(evaluate, *tensors, context=context)
    return out


def flash_attention(
    op: Callable, context: Context, q: Tensor, k: Tensor, v: Tensor, dropout_p=0.0, causal=False, softmax_scale=-1.0
) -> Tensor:
    """ComfyUI's op for flash-attn's kernel, which has no gradient formula, with one: [batch, tokens, heads, width]."""
    scale = None if softmax_scale == -1.0 else softmax_scale

    def exact(*qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in qkv)
        return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return op(q, k, v, dropout_p, causal, softmax_scale)

    return with_gradient_of(exact, kernel, context, q, k, v)
