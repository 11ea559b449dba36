"""A sample of the fault campaign, and that it would find what it looks for."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders import run
from pack.guiders.autograd import calls
from pack.research import faults


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "mode",
    [
        "elementwise, auto, doubling gaps",
        "jacobian, backward, checkpointed, random numbers",
        "jacobian, backward, a kernel without gradient",
        "ratio",
        "a range and a schedule",
    ],
)
def test_nothing_outlives_a_run(mode):
    found = faults.campaign(mode, share=0.008)
    assert found.injected >= 12
    assert found.bad == 0, found.examples


def test_a_run_that_is_kept_is_found(monkeypatch):
    kept = []
    monkeypatch.setattr(run.Run, "_say_cached", lambda self: None)
    on_step = run.Run.on_step

    def keeps(self, *args, **kwargs):
        kept.append(self)
        return on_step(self, *args, **kwargs)

    monkeypatch.setattr(run.Run, "on_step", keeps)
    found = faults.campaign("profile", share=0.02, errors=(RuntimeError,))
    assert found.leaked > 0


def test_an_interrupt_that_is_swallowed_is_found(monkeypatch):
    monkeypatch.setattr("pack.guiders.run.is_interrupt", lambda error: False)
    monkeypatch.setattr("pack.guiders.estimators.backward.is_interrupt", lambda error: False)
    found = faults.campaign("jacobian, backward", share=0.02, errors=faults.EXCEPTIONS[2:3])
    assert found.swallowed > 0


def test_an_override_that_stays_is_found(monkeypatch):
    """As where the network's forward is set and nobody restores it."""

    def stays(network, options):
        network.blocks[0].forward = network.blocks[0].forward
        return torch.inference_mode(False)

    monkeypatch.setattr(calls, "_recording", stays)
    found = faults.campaign("jacobian, backward", share=0.01, errors=(RuntimeError,))
    assert found.changed > 0
