"""Gradients through ComfyUI's models, for the length of one pass, in this thread, touching nothing that outlives it.

ComfyUI runs prompts in inference mode, whose tensors autograd refuses to save, on kernels that have no gradient. All of
it is answered by looking at each torch call on its way (a `TorchFunctionMode`), so that no weight is swapped, no module
is patched and nothing has to be restored.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ..reg.estimators import Evaluation, evaluate
from .checkpointing import checkpointed

try:
    from comfy_kitchen.backends import eager as kitchen
except ImportError:  # a ComfyUI without comfy-kitchen has nothing to replace
    kitchen = None

ATTENTION_SLOT = "optimized_attention_override"


@dataclass
class Care:
    """What a graph needs besides, learnt from attempts that failed without it: both cost something."""

    copies: bool = False  # of what autograd saves, for networks that write into it
    checkpoints: bool = False  # blocks evaluated again in the reverse pass, for graphs that do not fit


def evaluate_with_graph(denoise: Callable, x: Tensor, network: torch.nn.Module, care: Care) -> Evaluation:
    """Evaluate `denoise(x)`, which runs ComfyUI's `network`, so that vectors can be pulled back through it.

    Raises:
        RuntimeError: the network's output keeps no gradient. (D would have one all the same, through its own x.)
    """
    with ExitStack() as stack:
        if care.checkpoints:
            stack.enter_context(checkpointed(network, lambda: _recording(network, care)))
        stack.enter_context(_must_keep_gradient(network))
        stack.enter_context(_recording(network, care))
        return evaluate(denoise, x)


@contextmanager
def _recording(network: torch.nn.Module, care: Care):
    """Where autograd can record the network."""
    with _copied_activations(network) if care.copies else nullcontext(), DifferentiableCalls():
        yield


@contextmanager
def _must_keep_gradient(network: torch.nn.Module):
    def check(module, arguments, output):
        if not any(part.requires_grad for part in (output if isinstance(output, (list, tuple)) else [output])):
            raise RuntimeError("the network's output does not require grad")

    handle = network.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


class DifferentiableCalls(TorchFunctionMode):
    """Replaces, call by call, what autograd cannot record.

    - An inference tensor (weight, buffer, conditioning, cache) becomes an ordinary tensor on the same memory.
    - A fused comfy-kitchen op, which has no autograd formula, becomes the library's own eager function.
    - A part of the network under `no_grad` is recorded all the same: the gradient would be silently wrong without it.

    A tensor's attributes are read and set as they are, but no alias is ever put into a tensor of the model.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == "_set_grad_enabled" and torch.is_grad_enabled() and not args[0]:
            return None
        if func.__name__ == "__set__" and _is_its_own_alias(*args):
            return None
        if func.__name__ in ("__get__", "__set__"):
            return func(*args, **(kwargs or {}))
        kwargs = {key: _ordinary(value) for key, value in kwargs.items()} if kwargs else {}
        return _eager(func)(*[_ordinary(value) for value in args], **kwargs)


def _ordinary(value):
    """The same value with every plain inference tensor in it replaced by an ordinary alias of its memory."""
    if isinstance(value, Tensor):
        return _alias(value) if type(value) in (Tensor, torch.nn.Parameter) and value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the memory of an inference tensor; nothing is copied."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _is_its_own_alias(tensor, value=None, *rest) -> bool:
    """Would this put an alias of an inference tensor into itself, as `Module.to` does where nothing is to be moved?"""
    both = isinstance(tensor, Tensor) and isinstance(value, Tensor)
    return both and tensor.is_inference() and tensor.data_ptr() == value.data_ptr()


def _eager(func):
    """comfy-kitchen's eager function in place of its custom op; any other function as it is."""
    if kitchen is None or not str(func).startswith("comfy_kitchen"):
        return func
    return getattr(kitchen, func.__name__.split(".")[0], func)


def _copied_activations(network: torch.nn.Module) -> saved_tensors_hooks:
    """Autograd saves copies of activations, which later writes cannot reach, and the weights themselves."""
    own = {w.untyped_storage().data_ptr() for w in network.parameters()}
    return saved_tensors_hooks(lambda t: t if t.untyped_storage().data_ptr() in own else t.clone(), lambda t: t)


def with_differentiable_attention(model_options: dict) -> dict:
    """A copy of model_options whose attention runs on PyTorch's kernel, which has a gradient.

    flash-attn and SageAttention have forward kernels only. An override that another pack put there stays in charge and
    is handed PyTorch's kernel as the one to call.
    """
    transformer_options = dict(model_options.get("transformer_options", {}))
    theirs = transformer_options.get(ATTENTION_SLOT)

    def attention(func, *args, **kwargs):
        return theirs(attention_pytorch, *args, **kwargs) if theirs else attention_pytorch(*args, **kwargs)

    transformer_options[ATTENTION_SLOT] = attention
    return {**model_options, "transformer_options": transformer_options}
