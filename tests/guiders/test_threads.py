"""Two threads on one model: each has its own gradient, and nothing of either is left on the model."""

import sys
import threading

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.autograd.calls import GraphOptions, evaluate_with_graph
from pack.tests.families import FAMILIES
from pack.tests.guiders import precisions
from pack.tests.guiders.autograd.test_checkpointing import denoiser_of

TIMES = 6


@pytest.fixture
def often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_two_threads_on_one_model(often, checkpoints):
    """One differentiates, one differentiates differently, one only predicts; the weights are made for each call."""
    network, x, denoise = denoiser_of(FAMILIES["SD15"], precisions.build(FAMILIES["SD15"], "fp8"))
    options = GraphOptions(checkpoints=checkpoints)

    def gradient(scale):
        found = evaluate_with_graph(denoise, scale * x, network, options)
        return found.pull_back(torch.ones_like(x))

    @torch.inference_mode()
    def prediction():
        return denoise(x)

    jobs = [lambda: gradient(1.0), lambda: gradient(2.0), prediction]
    expected = [job() for job in jobs]
    found, failed = [[] for _ in jobs], []

    def work(i):
        try:
            for _ in range(TIMES):
                found[i].append(jobs[i]())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[i]) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for one, all_of_it in zip(expected, found, strict=True):
        assert len(all_of_it) == TIMES
        for answer in all_of_it:
            torch.testing.assert_close(answer, one)
    for module in network.modules():
        assert "forward" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks
