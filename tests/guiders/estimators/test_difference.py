"""A probe beside the conds in one batch, or alone where that cannot be."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.guiders import networks, tiny

X, SIGMA = tiny.latent() * 2, 1.7


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


@pytest.mark.parametrize("network", [networks.NoBatchOfThree, networks.SamplesSeeEachOther])
def test_a_probe_that_cannot_be_in_the_batch_is_taken_alone(model, network):
    options = Options("elementwise", "difference")
    points = [(X, SIGMA), (X * 0.9, SIGMA * 0.9)]
    answers = tiny.predict(tiny.guider(on_model(tiny.as_model(network()), options)), *points)
    for answer, expected in zip(answers, tiny.predict(tiny.guider(on_model(model, options)), *points), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
