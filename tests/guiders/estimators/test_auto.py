"""The gradient where it can be had, and differences where not: said once."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.guiders import networks, tiny


@pytest.mark.parametrize(
    ("network", "reason"), [(networks.NoGradient, "does not require grad"), (networks.OutOfMemory, "out of memory")]
)
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_without_a_gradient_it_says_so_once_and_takes_the_difference(network, reason, rectification, caplog):
    model = tiny.as_model(network())
    with caplog.at_level(logging.WARNING):
        fallen_back = tiny.sample(tiny.guider(on_model(model, Options(rectification, "auto"))))
    lines = [r.getMessage() for r in caplog.records if "REG" in r.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0] and "difference" in lines[0]
    expected = tiny.sample(tiny.guider(on_model(model, Options(rectification, "difference"))))
    torch.testing.assert_close(fallen_back, expected)
