"""A sample of the fault campaign, and that it would find what it looks for."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")


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
        "ratio",
    ],
)
def test_nothing_outlives_a_run(mode):
    found = faults.campaign(mode, share=0.005)
    assert found.injected >= 8
    assert found.bad == 0, found.examples


def test_a_run_that_is_kept_is_found(monkeypatch):
    kept = []
    on_step = run.Run.on_step

    def keeps(self, *args, **kwargs):
        kept.append(self)
        return on_step(self, *args, **kwargs)

    monkeypatch.setattr(run.Run, "on_step", keeps)
    found = faults.campaign("profile", share=0.02, errors=(RuntimeError,))
    assert found.leaked > 0


def test_an_interrupt_that_is_swallowed_is_found(monkeypatch):
    """Errors in an extra pass are: the run goes on without it."""
    monkeypatch.setattr(faults, "INTERRUPTS", (RuntimeError,))
    found = faults.campaign("ratio", share=0.02, errors=(RuntimeError,))
    assert found.swallowed > 0


def test_an_override_that_stays_is_found(monkeypatch):
    """In the tenth pass with a graph, somebody overrides a block and does not restore it."""
    passes, recording = [], calls._recording

    def stays(network, options):
        passes.append(network)
        if len(passes) == 10:
            network.blocks[0].forward = network.blocks[0].forward
        return recording(network, options)

    monkeypatch.setattr(calls, "_recording", stays)
    found = faults.campaign("jacobian, backward", share=0.01, errors=(RuntimeError,))
    assert found.changed == 1
