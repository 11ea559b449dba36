"""Calls that autograd cannot record, and weights that it refuses: the gradient is that of the plain network."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
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


def test_weights_of_inference_mode_have_the_same_gradient(model):
    with torch.inference_mode():
        inside = tiny.as_model(tiny.Network())
    assert next(inside.model.parameters()).is_inference()
    for rectification in ("elementwise", "jacobian"):
        options = Options(rectification, "backward")
        answer, expected = (tiny.predict(tiny.guider(on_model(m, options)), (X, SIGMA))[0] for m in (inside, model))
        assert torch.equal(answer, expected)
