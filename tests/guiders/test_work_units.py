"""ComfyUI's work units for several GPUs, their threads on the CPU under two names: the same latents as on one."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import threading

import torch

pytest.importorskip("comfy.multigpu", reason="this ComfyUI has no work units yet")
import comfy.model_management
from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

from pack.guiders.attach import on_model
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import by_hand, tiny

DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]


class Network(tiny.Network):
    """Knows which threads it ran in."""

    def __init__(self):
        super().__init__()
        self.threads = set()

    def forward(self, *args, **kwargs):
        self.threads.add(threading.current_thread())
        return super().forward(*args, **kwargs)


@pytest.fixture
def split(monkeypatch):
    """A model whose conds are evaluated by two devices, each with a model of its own."""
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda *args, **kwargs: DEVICES)
    comfy.model_management.cleanup_models()  # of tests before, which it would look through
    model = tiny.as_model(Network())
    model.cached_patcher_init = (lambda: tiny.as_model(Network()), ())
    return MultiGPUCFGSplitNode.execute(model, max_gpus=2).args[0]


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_work_units(split, options):
    expected = tiny.sample(tiny.guider(on_model(tiny.as_model(tiny.Network()), options)))
    with captured_warnings() as lines:
        found = tiny.sample(tiny.guider(on_model(split, options)))
    assert lines == []
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    (other,) = split.get_additional_models_with_key("multigpu")
    networks = [patcher.model.diffusion_model for patcher in (split, other)]
    workers = [network.threads - {threading.main_thread()} for network in networks]
    assert all(workers) and not workers[0] & workers[1]
