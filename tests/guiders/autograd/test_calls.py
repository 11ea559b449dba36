"""Calls that autograd cannot record, and weights that it refuses: the gradient is that of the plain network."""

import gc
import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.autograd.calls import GraphOptions, evaluate_with_graph
from pack.guiders.options import Options
from pack.tests.guiders import by_hand, networks, tiny

X, SIGMA = tiny.latent() * 2, 1.7
kinds = pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


@pytest.mark.parametrize("checkpoint", ["off", "always"])
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_part_under_no_grad_is_in_the_gradient(model, rectification, checkpoint):
    options = Options(rectification, "backward", checkpoint=checkpoint)
    answer, expected = (
        tiny.predict(tiny.guider(on_model(m, options)), (X, SIGMA))[0]
        for m in (tiny.as_model(networks.UnderNoGrad()), model)
    )
    torch.testing.assert_close(answer, expected)


@kinds
def test_a_model_that_moves_itself_is_as_good_afterwards(model, options):
    with torch.inference_mode():
        moving = tiny.as_model(networks.MovesItself())
    for m in (moving, model):
        tiny.sample(tiny.guider(on_model(m, options)))
    assert all(weight.is_inference() for weight in moving.model.parameters())
    assert torch.equal(tiny.sample(tiny.guider(moving)), tiny.sample(tiny.guider(model)))


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_model_that_writes_into_saved_tensors_still_has_a_gradient(model, rectification, caplog):
    options = Options(rectification, "backward")
    points = [(X, SIGMA), (X * 0.9, SIGMA * 0.9)]
    with caplog.at_level(logging.WARNING):
        answers = tiny.predict(tiny.guider(on_model(tiny.as_model(networks.WritesInPlace()), options)), *points)
    assert not [r for r in caplog.records if "REG" in r.getMessage()]
    for answer, expected in zip(answers, tiny.predict(tiny.guider(on_model(model, options)), *points), strict=True):
        torch.testing.assert_close(answer, expected)


class Overwritten(torch.nn.Module):
    """Saves a tensor, then writes into it what comes of it."""

    fails = False

    def forward(self, x):
        y = x * 2
        y.add_(y.square())
        if self.fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return y.mul(3)


def graphs():
    return [o for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn is not None]


@pytest.mark.parametrize("end", ["backward fails", "forward fails", "unused", "in a block that is evaluated again"])
def test_a_graph_that_is_not_used_up_stays_nowhere(end):
    """Not even until Python looks for cycles: it would be the card's memory."""
    network = torch.nn.Sequential(Overwritten()) if end != "in a block that is evaluated again" else Blocks()
    gc.collect()
    before = len(graphs())
    gc.disable()
    try:
        if end == "forward fails":
            network[0].fails = True
            with pytest.raises(torch.cuda.OutOfMemoryError):
                evaluate_with_graph(network, X, network, GraphOptions())
        else:
            found = evaluate_with_graph(network, X, network, GraphOptions(checkpoints=isinstance(network, Blocks)))
            assert len(graphs()) > before
            if end != "unused":
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    found.pull_back(X)
            del found
        assert len(graphs()) == before
    finally:
        gc.enable()


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Overwritten()])

    def forward(self, x):
        return self.blocks[0](x)


def test_weights_of_inference_mode_have_the_same_gradient(model):
    with torch.inference_mode():
        inside = tiny.as_model(tiny.Network())
    assert next(inside.model.parameters()).is_inference()
    for rectification in ("elementwise", "jacobian"):
        options = Options(rectification, "backward")
        answer, expected = (tiny.predict(tiny.guider(on_model(m, options)), (X, SIGMA))[0] for m in (inside, model))
        assert torch.equal(answer, expected)
