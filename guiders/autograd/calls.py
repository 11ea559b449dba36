"""Gradients through ComfyUI's models, for the length of one pass, in this thread, touching nothing that outlives it.

ComfyUI runs prompts in inference mode, whose tensors autograd refuses to save, on kernels that have no gradient. All of
it is answered by looking at each torch call on its way (a `TorchFunctionMode`), so that no weight is swapped, no module
is patched and nothing has to be restored.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ...reg.estimators import Evaluation, evaluate
from .attention import flash_attention
from .checkpointing import alias, checkpointed
from .weights import recompute_weights

try:
    from comfy_kitchen.backends import eager as kitchen
except ImportError:  # a ComfyUI without comfy-kitchen has nothing to replace
    kitchen = None

MODULE_SLOTS = frozenset(torch.nn.Module().__dict__)  # what every module has, whose tensors keep no graph
_locks = weakref.WeakKeyDictionary()  # by network: one thread at a time overrides parts of it
SPLITS = ("split", "chunk", "split_with_sizes", "tensor_split")


@dataclass
class GraphOptions:
    """How a graph is recorded. Both options cost something, and are learnt from attempts that failed without them."""

    copies: bool = False  # of what autograd saves, for networks that write into it
    checkpoints: bool = False  # blocks evaluated again in the reverse pass, for graphs that do not fit


def evaluate_with_graph(denoise: Callable, x: Tensor, network: torch.nn.Module, options: GraphOptions) -> Evaluation:
    """Evaluate `denoise(x)`, which runs ComfyUI's `network`, so that vectors can be pulled back through it.

    Raises:
        RuntimeError: the network's output keeps no gradient. (D would have one all the same, through its own x.)
    """
    with ExitStack() as stack:
        stack.enter_context(_lock_of(network))
        stack.enter_context(_eager_networks())
        stack.enter_context(_caches_without_graph(network))
        if options.checkpoints:
            stack.enter_context(checkpointed(network, lambda: _recording(network, options)))
        stack.enter_context(_must_keep_gradient(network))
        saved = stack.enter_context(_recording(network, options))
        found = evaluate(denoise, x)
    return replace(found, owner=saved)


@contextmanager
def _recording(network: torch.nn.Module, options: GraphOptions):
    """Where autograd can record the network: gives what has to be kept until the graph was used."""
    saved = Saved()
    own = {w.untyped_storage().data_ptr() for w in network.parameters() if _is_plain(w)} if options.copies else None
    hooks = saved_tensors_hooks(partial(_pack, saved.held, own), _unpack)
    with _lock_of(network), hooks, recompute_weights(network, DifferentiableCalls), DifferentiableCalls():
        yield saved


def _lock_of(network: torch.nn.Module) -> threading.RLock:
    """Held while parts of the network are overridden, so that two threads on one model do not restore each other's.
    (A reverse pass on a GPU runs in a thread of its own, after the forward pass has let go.)"""
    return _locks.setdefault(network, threading.RLock())


@contextmanager
def _must_keep_gradient(network: torch.nn.Module):
    ours = threading.get_ident()

    def check(module, arguments, output):
        parts = output if isinstance(output, (list, tuple)) else [output]
        if threading.get_ident() == ours and not any(part.requires_grad for part in parts):
            raise RuntimeError("the network's output does not require grad")

    handle = network.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _eager_networks():
    """Context in which compiled networks run uncompiled: a graph of theirs would be compiled anew, and again later."""
    if "_dynamo" not in vars(torch) or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _caches_without_graph(network: torch.nn.Module):
    """What the network keeps for later evaluations (keys and values of the prompt) is kept without this one's graph."""
    try:
        yield
    finally:
        for module in network.modules():
            for name, value in list(module.__dict__.items()):
                if name not in MODULE_SLOTS and _keeps_graph(value):
                    module.__dict__[name] = _without_graph(value)


def _keeps_graph(value) -> bool:
    if isinstance(value, Tensor):
        return value.grad_fn is not None
    if isinstance(value, dict):
        return any(_keeps_graph(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_keeps_graph(item) for item in value)


def _without_graph(value):
    """The same nested value with every tensor detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _without_graph(item) for key, item in value.items()}
    return type(value)(_without_graph(item) for item in value) if type(value) in (list, tuple) else value


class DifferentiableCalls(TorchFunctionMode):
    """Replaces, call by call, what autograd cannot record.

    - An inference tensor (weight, buffer, conditioning, cache) becomes an ordinary tensor on the same memory.
    - A fused comfy-kitchen op, which has no autograd formula, becomes the library's own eager function. One that
      writes into its input leaves to autograd what was there.
    - Parts of a split, which autograd does not let anyone write into, become slices, into which it does.
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
        return _differentiable(func)(*[_ordinary(value) for value in args], **kwargs)


def _ordinary(value):
    """The same value with every plain inference tensor in it replaced by an ordinary alias of its memory."""
    if isinstance(value, Tensor):
        return alias(value) if _is_plain(value) and value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _is_plain(tensor: Tensor) -> bool:
    """Is it a tensor with memory of its own, and not one of quantised parts? A pack's own class of tensors may be."""
    return type(tensor).__torch_dispatch__ == Tensor.__torch_dispatch__


def _is_its_own_alias(tensor, value=None, *rest) -> bool:
    """Would this put an alias of an inference tensor into itself, as `Module.to` does where nothing is to be moved?"""
    both = isinstance(tensor, Tensor) and isinstance(value, Tensor)
    return both and tensor.is_inference() and tensor.data_ptr() == value.data_ptr()


def _differentiable(func):
    """What stands for a function where autograd records; most stand for themselves."""
    if func.__name__ in SPLITS:
        return _slices_of(func)
    if str(func).startswith("comfy.flash_attn"):
        return partial(flash_attention, func, DifferentiableCalls)
    if kitchen is None or not str(func).startswith("comfy_kitchen"):
        return func
    name = func.__name__.split(".")[0]
    if name.endswith("_") and hasattr(kitchen, name[:-1]):
        return partial(_written, getattr(kitchen, name[:-1]))
    return getattr(kitchen, name, func)


def _written(op: Callable, *args, **kwargs) -> tuple[Tensor, ...] | Tensor:
    """What the variant of an op that writes into its first inputs does, from the one that does not."""
    found = op(
        *[value.clone() if isinstance(value, Tensor) and value.requires_grad else value for value in args], **kwargs
    )
    if isinstance(found, Tensor):
        return args[0].copy_(found)
    return tuple(place.copy_(value) for place, value in zip(args, found, strict=False))


def _slices_of(split: Callable) -> Callable:
    """A split whose parts are slices."""

    def parts(x: Tensor, *args, **kwargs) -> tuple[Tensor, ...]:
        found = split(x, *args, **kwargs)
        if not x.requires_grad or not found:
            return found
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        ends = [0, *accumulate(part.shape[dim] for part in found)]
        return tuple(x.narrow(dim, start, end - start) for start, end in pairwise(ends))

    return parts


class Saved:
    """What autograd saves, which it lets go of when this is deleted.

    A tensor that is written into after it was saved holds the graph that holds it, where no garbage collector looks: a
    graph that was not used up, since it failed or was not wanted, would stay for ever.
    """

    def __init__(self):
        self.held: list[weakref.ref[_Held]] = []

    def __del__(self):
        for reference in self.held:
            if (held := reference()) is not None:
                held.tensor = None


class _Held:
    """A saved tensor, and its version then: where there are hooks, autograd leaves it to them to look."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.version = None if tensor.is_inference() else tensor._version


def _pack(known: list, own: set[int] | None, tensor: Tensor) -> _Held:
    """A tensor to be saved; a copy of it, which later writes cannot reach, unless it is one of the network's `own`.

    The graph keeps its hooks: they must not keep `Saved`.
    """
    copied = own is not None and _is_plain(tensor) and tensor.untyped_storage().data_ptr() not in own
    held = _Held(tensor.clone() if copied else tensor)
    known.append(weakref.ref(held))
    return held


def _unpack(held: _Held) -> Tensor:
    """The saved tensor. Raises RuntimeError where it is not what it was: with autograd's own words."""
    if held.version is not None and held.tensor._version != held.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation"
        )
    return held.tensor
