"""The ways in, and what they refuse before anything is sampled."""

from functools import partial

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.model_management
import torch

from pack.guiders import attach
from pack.guiders.attach import RectifiedSampler, memory, on_model
from pack.guiders.options import Options
from pack.nodes.guidance import REGGuider
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import by_hand, tiny

X, SIGMA = tiny.latent() * 2, 1.7
kinds = pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


@kinds
def test_three_ways_in_give_the_same_latents(model, options):
    with torch.inference_mode():
        node = REGGuider.execute(model, tiny.POSITIVE, tiny.NEGATIVE, 4.0, **tiny.node_inputs(options))
    by_model = tiny.sample(tiny.guider(on_model(model, options)))
    by_guider = tiny.sample(node.args[0])
    by_sampler = tiny.sample(tiny.guider(model), wrap=lambda sampler: RectifiedSampler(sampler, options))
    torch.testing.assert_close(by_guider, by_model)
    torch.testing.assert_close(by_sampler, by_model)
    assert (by_model - tiny.sample(tiny.guider(model))).abs().max() > 1e-3


def test_a_profile_of_another_model_is_refused_before_sampling(model):
    for about, words in (({"prediction": "FLOW"}, "prediction FLOW"), ({"channels": "16"}, "channels 16")):
        options = Options("elementwise", "profile", profile=tiny.profile(**about))
        sentence = f"REG: .*{words}.*REG Calibrate"
        with pytest.raises(ValueError, match=sentence):
            on_model(model, options)
        with pytest.raises(ValueError, match=sentence):  # here it is the sampler that meets the model
            tiny.sample(tiny.guider(model), wrap=partial(RectifiedSampler, options=options))
    assert model.model.diffusion_model.evaluated == 0


def test_a_latent_of_another_model_is_refused_before_sampling(model):
    x = torch.randn(1, 5, 4, 4)
    network = model.model.diffusion_model
    with pytest.raises(ValueError, match="REG: the latent has 5 channels and this model takes 3"):
        tiny.predict(tiny.guider(on_model(model, Options())), (x, SIGMA))
    assert network.evaluated == 0


def test_what_has_no_denoiser_is_refused():
    with pytest.raises(ValueError, match="REG: this model has no denoiser"):
        on_model(object(), Options())


def asked(monkeypatch, run):
    """How much memory ComfyUI is asked for while run() runs."""
    sizes, load = [], comfy.model_management.load_models_gpu

    def loading(models, memory_required=0, **kwargs):
        sizes.append(memory_required)
        return load(models, memory_required=memory_required, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", loading)
        run()
    (size,) = sizes
    return size


MEMORY = [  # over that of CFG
    (Options("ratio"), 1.0),
    (Options("jacobian", "difference"), 1.0),  # one evaluation at a time
    (Options("elementwise", profile=tiny.profile()), 1.0),
    (Options("elementwise", "difference"), 1.5),  # a probe is a third evaluation in the batch
    (Options("elementwise"), 1.5),  # a graph whose blocks keep their inputs
    (Options("elementwise", "backward", checkpoint="always"), 1.5),
    (
        Options("jacobian", "backward"),
        2.5,
    ),  # a graph of 20 blocks that keep all: 20 / 4 evaluations, of which CFG has 2
    (Options("elementwise", strength=0.0), 1.0),
]


class TwentyBlocks(tiny.Network):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(20))


@pytest.mark.parametrize(("options", "times"), MEMORY, ids=str)
def test_memory_is_asked_for_by_the_method_before_the_model_is_loaded(monkeypatch, options, times):
    """Four pictures: room for so many evaluations more."""
    model, x = tiny.as_model(TwentyBlocks()), tiny.latent(batch=4)
    assert memory(options, model.model) == times
    sizes = [
        asked(monkeypatch, lambda m=m: tiny.predict(tiny.guider(m), (x, SIGMA)))
        for m in (model, on_model(model, options))
    ]
    assert sizes[1] == pytest.approx(times * sizes[0])


@pytest.mark.parametrize(("options", "times"), MEMORY, ids=str)
def test_the_sampler_asks_for_as_much(monkeypatch, options, times):
    """Its model is loaded already: what else is loaded makes room for what is needed beyond CFG, for two conds of four."""
    model, x, room = tiny.as_model(TwentyBlocks()), tiny.latent(batch=4), []
    monkeypatch.setattr(attach, "make_room", lambda model, needed, device: room.append(needed))
    tiny.predict(tiny.guider(model), (x, SIGMA), wrap=lambda sampler: RectifiedSampler(sampler, options))
    pictures = 2 * (times - 1) * 4
    assert sum(room) == (pytest.approx(model.model.memory_required([pictures, *x.shape[1:]])) if pictures else 0)


FIRST, SECOND = Options("elementwise", "backward", refresh=1), Options("jacobian", "backward", refresh=1)


def test_of_two_nodes_in_a_chain_the_last_counts(model):
    for last in (SECOND, Options(strength=0.0)):
        twice, once = (on_model(m, last) for m in (on_model(model, FIRST), model))
        assert torch.equal(tiny.sample(tiny.guider(twice)), tiny.sample(tiny.guider(once)))


def test_beside_reg_on_the_model_a_reg_sampler_gives_way_and_says_so(model):
    rectified = on_model(model, FIRST)
    with captured_warnings() as lines:
        found = tiny.sample(tiny.guider(rectified), wrap=lambda sampler: RectifiedSampler(sampler, SECOND))
    assert torch.equal(found, tiny.sample(tiny.guider(rectified)))
    assert any("this run has REG twice" in line for line in lines)
