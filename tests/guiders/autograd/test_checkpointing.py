"""Block by block the gradient is the same, and what is kept for it is less."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.autograd.calls import DifferentiableCalls, GraphOptions, evaluate_with_graph
from pack.guiders.options import Options
from pack.tests.families import FAMILIES
from pack.tests.guiders import tiny


def denoiser(family):
    """The network of a tiny family, x and a function of x."""
    return denoiser_of(family, family.build())


def denoiser_of(family, model):
    """The same of a model of the family."""
    network, x = model.model.diffusion_model, family.latent()
    (text, extras), *_ = family.conditioning(1)
    y = extras.get("pooled_output")
    return network, x, lambda x: network(x, torch.full([len(x)], 300.0), context=text, y=y, transformer_options={})


def saved_bytes(evaluation, own):
    """What the graph keeps besides the weights `own`, each memory counted once."""
    kept, seen, left = {}, set(), [evaluation.denoised.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left.extend(following for following, _ in node.next_functions)
        for name in dir(node):
            if name == "saved_tensors" or name.startswith("_saved_"):
                values = getattr(node, name)
                for tensor in values if isinstance(values, (list, tuple)) else [values]:
                    if isinstance(tensor, torch.Tensor):
                        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(size for memory, size in kept.items() if memory not in own)


@pytest.mark.parametrize("name", ["SD15", "SD3", "Flux"])
def test_same_gradient_from_less_memory(name):
    network, x, denoise = denoiser(FAMILIES[name])
    own = {w.untyped_storage().data_ptr() for w in network.parameters()}
    copies = name == "Flux"  # it writes into what autograd saves
    plain = evaluate_with_graph(denoise, x, network, GraphOptions(copies))
    blockwise = evaluate_with_graph(denoise, x, network, GraphOptions(copies, checkpoints=True))
    less, much = saved_bytes(blockwise, own), saved_bytes(plain, own)
    v = torch.randn_like(x)
    torch.testing.assert_close(blockwise.denoised, plain.denoised)
    torch.testing.assert_close(blockwise.pull_back(v), plain.pull_back(v), rtol=1e-4, atol=1e-5)
    assert less < 0.7 * much
    assert not [m for m in network.modules() if "forward" in m.__dict__]


class Blocks(tiny.Network):
    """Two blocks that write into their input and look at options that change between them."""

    class Block(torch.nn.Module):
        def forward(self, h, transformer_options):
            h += 0.3 * torch.tanh(h * transformer_options["block"])
            return h

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x, t, context=None, transformer_options=None, **kwargs):
        h = super().forward(x, t, context) + 0
        for i, block in enumerate(self.blocks):
            transformer_options["block"] = i + 1.0
            h = block(h, transformer_options)
        return h


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_blocks_that_write_and_options_that_change(rectification):
    model, point = tiny.as_model(Blocks()), (tiny.latent() * 2, 1.7)
    answers = [
        tiny.predict(tiny.guider(on_model(model, Options(rectification, "backward", checkpoint=choice))), point)[0]
        for choice in ("always", "off")
    ]
    torch.testing.assert_close(*answers)


class FitsInBlocks(Blocks):
    """Runs out of memory with a graph, unless its blocks are checkpointed."""

    def forward(self, x, *args, **kwargs):
        if x.requires_grad and "forward" not in self.blocks[0].__dict__:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, *args, **kwargs)


def test_out_of_memory_goes_on_block_by_block(caplog):
    point = (tiny.latent() * 2, 1.7)
    answers = [
        tiny.predict(tiny.guider(on_model(tiny.as_model(kind()), Options("jacobian", "auto"))), point, point)
        for kind in (FitsInBlocks, Blocks)
    ]
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected)
    assert not [r for r in caplog.records if "difference" in r.getMessage()]


def test_the_mode_is_the_one_of_the_forward_pass():
    """Inference weights and kitchen ops are met again in the reverse pass."""
    assert issubclass(DifferentiableCalls, torch.overrides.TorchFunctionMode)
    with torch.inference_mode():
        network, x, denoise = denoiser(FAMILIES["Flux"])
        inside = evaluate_with_graph(denoise, x, network, GraphOptions(True, True)).pull_back(torch.ones_like(x))
    network, x, denoise = denoiser(FAMILIES["Flux"])
    outside = evaluate_with_graph(denoise, x, network, GraphOptions(copies=True)).pull_back(torch.ones_like(x))
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)
