"""Compiled models: the compiled network is asked as before, the gradient is the plain network's, nothing is compiled anew."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import by_hand, tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Backend:
    """Compiles nothing, and counts what it is asked to compile and to run."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.ran += 1
            return graph.forward(*args)

        return run


class Network(tiny.Network):
    """Does not count, which would be compiled anew every time."""

    def forward(self, x, t, context=None, **kwargs):
        h = self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class WithBlocks(Network):
    """Its blocks are watched for caches; compiled as a whole, it shows none."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Tanh() for _ in range(2))

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        for block in self.blocks:
            out = out + 0.3 * block(out)
        return out


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def by_node(model, backend):
    return TorchCompileModel.execute(model, backend).args[0]


def by_object_patch(model, backend):
    """As other packs do it."""
    model = model.clone()
    model.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend))
    return model


def by_block(model, backend):
    """As packs compile the blocks of large models one by one."""
    model = model.clone()
    set_torch_compile_wrapper(model, backend, keys=[f"diffusion_model.blocks.{i}" for i in range(2)])
    return model


@pytest.mark.parametrize("compiled_by", [by_object_patch, by_block])
@pytest.mark.parametrize("options", [Options("elementwise", "backward"), Options("ratio")], ids=by_hand.name)
def test_a_compiled_network_is_not_taken_for_a_cache(compiled_by, options):
    backend, network = Backend(), WithBlocks()
    expected = tiny.sample(tiny.guider(on_model(tiny.as_model(network), options)), steps=6)
    model = compiled_by(tiny.as_model(network), backend)
    with captured_warnings() as lines:
        found = tiny.sample(tiny.guider(on_model(model, options)), steps=6)
        first = backend.compiled
        tiny.sample(tiny.guider(on_model(model, options)), steps=12)
    assert lines == []
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert backend.compiled == first > 0


@pytest.mark.parametrize(
    ("rectification", "estimator", "compiled_by"),
    [
        ("elementwise", "backward", by_node),
        ("elementwise", "difference", by_node),
        ("jacobian", "backward", by_node),
        ("jacobian", "backward", by_object_patch),
        ("ratio", "difference", by_object_patch),
    ],
)
def test_compiled(rectification, estimator, compiled_by):
    backend, options = Backend(), Options(rectification, estimator)
    network = Network()
    expected = tiny.sample(tiny.guider(on_model(tiny.as_model(network), options)), steps=6)
    model = compiled_by(tiny.as_model(network), backend)
    with captured_warnings() as lines:
        found = tiny.sample(tiny.guider(on_model(model, options)), steps=6)
        first = backend.compiled
        again = tiny.sample(tiny.guider(on_model(model, options)), steps=12)
    assert lines == []
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert again.isfinite().all()
    assert 0 < first <= 3  # batches of one, of two and of three
    assert backend.compiled == first
    assert backend.ran >= 18
