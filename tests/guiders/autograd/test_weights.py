"""Memory: no weight that was made for a pass is kept; ComfyUI is told what is needed; running out loses no run."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.model_management
import comfy.ops
import torch

from pack.guiders.attach import on_model
from pack.guiders.autograd import checkpointing
from pack.guiders.autograd.calls import GraphOptions, evaluate_with_graph
from pack.guiders.options import Options
from pack.tests.families import FAMILIES
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import precisions, tiny
from pack.tests.guiders.autograd.test_checkpointing import denoiser_of, saved_bytes

POINT = (tiny.latent() * 2, 1.7)


def evaluation(name, model, checkpoints=False):
    """One evaluation of a tiny family with its graph, and the memory of its own weights."""
    network, x, denoise = denoiser_of(FAMILIES[name], model)
    own = {w.untyped_storage().data_ptr() for w in network.parameters() if type(w) is torch.nn.Parameter}
    return evaluate_with_graph(denoise, x, network, GraphOptions(copies=True, checkpoints=checkpoints)), own


def pulled_back(found):
    return found.pull_back(torch.ones_like(found.x))


@pytest.mark.parametrize(
    ("name", "precision"), [("SD15", "fp8"), ("Flux", "fp8"), ("Flux", "scaled fp8"), ("Flux", "nvfp4")]
)
def test_no_made_weight_is_kept(name, precision):
    """Of the layers' matrices; vectors are small."""
    made, own = evaluation(name, precisions.build(FAMILIES[name], precision))
    plain, theirs = evaluation(name, FAMILIES[name].build())
    network = FAMILIES[name].build().model.diffusion_model
    vectors = 4 * sum(w.numel() for w in network.parameters() if w.ndim < 2)
    matrices = 4 * sum(w.numel() for w in network.parameters() if w.ndim > 1)
    kept, would = saved_bytes(made, own), saved_bytes(plain, theirs)
    assert kept < would + 2 * vectors
    assert matrices > 4 * vectors


def stream(model):
    """Every layer's weight is made for each call in one and the same memory, as when weights are streamed."""
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, comfy.ops.CastWeightBiasOp)]
    buffer = torch.empty(max(layer.weight.numel() for layer in layers if layer.weight is not None))

    def made(weight):
        place = buffer[: weight.numel()].view(weight.shape)
        place.data.copy_(weight)  # which autograd does not notice
        return place

    for layer in layers:
        if layer.weight is not None:
            layer.weight_function = [made]
    return buffer


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("name", ["SD15", "Flux", "WAN21_T2V"])
def test_streamed_weights_have_the_same_gradient(name, checkpoints):
    expected = pulled_back(evaluation(name, FAMILIES[name].build())[0])
    model = FAMILIES[name].build()
    buffer = stream(model)
    found, _ = evaluation(name, model, checkpoints)
    buffer.fill_(float("nan"))
    torch.testing.assert_close(pulled_back(found), expected, rtol=1e-4, atol=1e-5)
    assert not [m for m in model.model.diffusion_model.modules() if "forward" in m.__dict__]


class RunsOut(tiny.Network):
    """Memory suffices for a graph at first, and later does not, with blocks or without."""

    graphs = 0

    def forward(self, x, *args, **kwargs):
        self.graphs += x.requires_grad
        if self.graphs > 2 and x.requires_grad:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, *args, **kwargs)


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_out_of_memory_in_the_middle_of_a_run(rectification):
    points = [(POINT[0] * s, POINT[1] * s) for s in (1.0, 0.9, 0.8, 0.7)]

    def run(network, estimator):
        return tiny.predict(tiny.guider(on_model(tiny.as_model(network), Options(rectification, estimator))), *points)

    with captured_warnings() as lines:
        found = run(RunsOut(), "auto")
    backward, difference = run(tiny.Network(), "backward"), run(tiny.Network(), "difference")
    assert len(lines) == 1 and "out of memory" in lines[0] and "estimator = difference" in lines[0]
    torch.testing.assert_close(found[:2], backward[:2])
    torch.testing.assert_close(found[3], difference[3], rtol=1e-3, atol=1e-3)


class Loaded:
    """Stands for a model in ComfyUI's list of loaded ones: how much memory it gives back."""

    def __init__(self, size, used, device):
        self.size, self.currently_used, self.device, self.model = size, used, device, self
        self.unloaded = False

    def is_dead(self):
        return False

    def is_dynamic(self):
        return False

    def model_memory(self):
        return self.size

    model_offloaded_memory = model_memory

    def model_unload(self, needed):
        self.unloaded = True
        return True

    def model_mmap_residency(self, free):
        """ComfyUI 0.18 asks how many bytes are in memory straight from the file, and of how many."""
        return 0, self.size


def test_other_models_make_room_for_a_graph(monkeypatch):
    """Half of the memory is theirs: with it the graph fits, and what this run uses stays."""
    device = torch.device("cuda", 7)
    used, unused = Loaded(1, True, device), Loaded(1, False, device)
    management = comfy.model_management
    monkeypatch.setattr(management, "current_loaded_models", [used, unused])
    monkeypatch.setattr(management, "cleanup_models_gc", lambda: None)
    monkeypatch.setattr(management, "soft_empty_cache", lambda *a, **k: None)
    monkeypatch.setattr(management, "get_free_memory", lambda *a, **k: 1000 if unused.unloaded else 500)
    model = tiny.as_model(tiny.Network()).model
    model.memory_required = lambda shape: 350  # a graph twice that, and a margin

    class On(torch.Tensor):
        device = torch.device("cuda", 7)

    assert checkpointing.room_for_graph(model, torch.zeros(1, 3, 4, 4).as_subclass(On)).fits
    assert (used.unloaded, unused.unloaded) == (False, True)
