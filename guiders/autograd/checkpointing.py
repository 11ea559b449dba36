"""Less memory for the graph: blocks of the network keep only their inputs and are evaluated again in the reverse pass.

That also keeps streamed and dequantised weights out of the graph: they are made again when they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..rng import RNGState

CHOICES = ("auto", "off", "always")
CHECKPOINTED = 3.0  # memory of a graph whose blocks keep only their inputs, over the evaluation without one
MARGIN = (
    1.25  # what is estimated may be so much too little: where memory runs out, some drivers do not fail, they crawl
)

Context = Callable[[], AbstractContextManager]


@contextmanager
def checkpointed(network: torch.nn.Module, context: Context):
    """Checkpoint every block of the network for the length of a forward pass.

    Args:
        context: makes the context in which a block is evaluated again.
    """
    with ExitStack() as stack:
        for block in blocks(network):
            override_forward(stack, block, _kept_by_its_inputs(block.forward, context))
        yield


def override_forward(stack: ExitStack, module: torch.nn.Module, forward: Callable) -> None:
    """Give a module another forward, until the stack is left: an override of another pack then stands again.

    A stack goes on restoring when it is interrupted while it does.
    """
    theirs = module.__dict__.get("forward")
    if theirs is None:
        stack.callback(module.__dict__.pop, "forward", None)
    else:
        stack.callback(module.__dict__.__setitem__, "forward", theirs)
    module.forward = forward


def blocks(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The parts that run one after another: members of the outermost module lists, and of sequences within these."""
    for child in network.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                yield from block.children() if isinstance(block, torch.nn.Sequential) else [block]
        else:
            yield from blocks(child)


def _kept_by_its_inputs(forward: Callable, context: Context) -> Callable:
    """The same forward, as one node of the graph.

    Blocks write into their inputs, and ComfyUI changes their options from block to block: so each evaluation gets
    copies of what the block was called with.
    """

    def block(*args, **kwargs):
        if not torch.is_grad_enabled():  # another thread's evaluation
            return forward(*args, **kwargs)
        options = {key: dict(value) for key, value in kwargs.items() if isinstance(value, dict)}
        leaves, spec = tree_flatten((args, {key: value for key, value in kwargs.items() if key not in options}))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        out_spec = None

        def evaluate(tensors: list[Tensor]) -> list[Tensor]:
            nonlocal out_spec
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor.clone() if tensor.is_floating_point() else tensor
            args, kwargs = tree_unflatten(filled, spec)
            out, out_spec = tree_flatten(
                forward(*args, **kwargs, **{key: dict(value) for key, value in options.items()})
            )
            return out

        out = recompute(lambda *tensors: evaluate(tensors), *(leaves[place] for place in places), context=context)
        return tree_unflatten(list(out), out_spec)

    return block


def recompute(evaluate: Callable, *tensors: Tensor, context: Context = nullcontext) -> tuple[Tensor, ...]:
    """evaluate(*tensors), a list, as one node of the graph: evaluated again, within `context`, in the reverse pass."""
    return _Node.apply(evaluate, context, *tensors)


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the same memory, neither a view nor an inference tensor; nothing is copied.

    Autograd lets nobody write into a view that a node of the graph gives.
    """
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


class _Node(torch.autograd.Function):
    """Evaluates without a graph, and once more with one when the gradient is asked for."""

    @staticmethod
    def forward(ctx, evaluate, context, *tensors):
        ctx.evaluate, ctx.context, rng = evaluate, context, RNGState(tensors[0].device)
        ctx.save_for_backward(
            *(t.view_as(t) for t in tensors)
        )  # views made here are ordinary tensors, which autograd saves
        found = evaluate(*tensors)
        ctx.rng = rng if rng.has_moved() else None
        return tuple(alias(out) if isinstance(out, Tensor) and out._is_view() else out for out in found)

    @staticmethod
    def backward(ctx, *gradients):
        needed = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        same_numbers = ctx.rng.replayed() if ctx.rng else nullcontext()
        with torch.enable_grad(), same_numbers, ctx.context() as _saved:  # lives until the graph was used
            out = ctx.evaluate(*leaves)
        pairs = [(o, g) for o, g in zip(out, gradients, strict=True) if g is not None and o.requires_grad]
        outputs, arrived = zip(*pairs, strict=True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, arrived, allow_unused=True))
        return (None, None, *(next(found) if n else None for n in needed))


def graph_memory(model, checkpoints: bool = False) -> float:
    """How much memory the graph of an evaluation takes, over the evaluation without one.

    ComfyUI's own estimate is that of an evaluation without a graph, whose peak is a few blocks'; a graph keeps them all,
    and one with checkpoints their inputs, and one of them whole.
    """
    whole = max(2.0, len(list(blocks(model.diffusion_model))) / 4)
    return min(whole, CHECKPOINTED) if checkpoints else whole


@dataclass(frozen=True)
class Room:
    """What a graph needs, and what there is for it, in bytes."""

    needed: float
    free: float

    @property
    def fits(self) -> bool:
        return self.needed * MARGIN <= self.free

    def __str__(self):
        return f"about {self.needed * MARGIN / 1e9:.1f} GB with a margin, where {self.free / 1e9:.1f} GB are free"


def room_for_graph(model, x: Tensor, checkpoints: bool = False) -> Room:
    """For the graph of one evaluation at x, after models that are not in use made room."""
    needed = model.memory_required([*x.shape]) * graph_memory(model, checkpoints)
    make_room(model, needed * MARGIN, x.device)
    return Room(needed, comfy.model_management.get_free_memory(x.device))


def make_room(model, needed: float, device: torch.device) -> None:
    """Let ComfyUI unload what a run of this model does not use, where less memory is free than needed."""
    management = comfy.model_management
    if management.is_device_cpu(device) or needed < management.get_free_memory(device):
        return
    loaded = management.current_loaded_models
    in_use = [one for one in loaded if one.currently_used or getattr(one.model, "model", None) is model]
    management.free_memory(needed, device, keep_loaded=in_use)
