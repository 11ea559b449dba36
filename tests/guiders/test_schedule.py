"""Schedules inside runs, against the authors' definitions; what they cost; what is refused."""

import dataclasses
import math
from types import SimpleNamespace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from safetensors.torch import load as load_safetensors

from pack.devtools import workflow
from pack.devtools.client import PromptError
from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.options import Options
from pack.guiders.schedule import GuidanceSchedule, percent_of
from pack.nodes.draw import schedule as draw
from pack.nodes.guidance import REGGuider
from pack.nodes.schedule import REGSchedule
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

X = tiny.latent() * 2
TIMES = (999, 800, 500, 250, 60)  # of a model with 1000 timesteps
START, END = 5.0, 0.5  # their flags cfg_scale and end_scale
LINEAR = GuidanceSchedule("linear", 1 + 2 * START - END, cfg_end=1 + START)
COSINE = GuidanceSchedule("cosine", 6.0, power=2.0)
INTERVAL = GuidanceSchedule("interval", 6.0, start_percent=0.2, end_percent=0.6)
CONSTANT = GuidanceSchedule("constant", 6.0)

PLAIN = Options(strength=0.0)
REG = Options("elementwise", "backward", refresh=1)


def dit_linear(t):
    """zhengqigao/REG, DiT/forward_with_cfg.py, reg_linear and linear: k = (end_scale − start_scale) / (0 − 1000) and
    w = t k + start_scale, as written there. That is 2 · start − end at t = 1000 and start at t = 0: end is nowhere."""
    k = (END - START) / (0 - 1000)
    return t * k + START


def dit_cosine(t):
    """zhengqigao/REG, DiT, cfg_type reg_cosine: w = (1 − cos(π progress^s)) / 2 · scale, progress = 1 − t / 1000.

    Their plain `cosine` puts the same number in the place of cfg, ε_u + number (ε_c − ε_u): one less than w.
    """
    return (1 - math.cos(math.pi * (1 - t / 1000) ** 2.0)) * 0.5 * (COSINE.cfg - 1)


def dit_interval(t):
    """zhengqigao/REG, DiT, cfg_type reg_intervalt: w where min ≤ t ≤ max, and the plain conditional elsewhere."""
    low, high = 999 * (1 - INTERVAL.end_percent), 999 * (1 - INTERVAL.start_percent)
    return INTERVAL.cfg - 1 if low <= t <= high else 0.0


AUTHORS = [(LINEAR, dit_linear), (COSINE, dit_cosine), (INTERVAL, dit_interval), (CONSTANT, lambda t: 5.0)]
authors = pytest.mark.parametrize(("schedule", "w_of"), AUTHORS, ids=lambda v: getattr(v, "shape", ""))
every = pytest.mark.parametrize("schedule", [s for s, _ in AUTHORS], ids=lambda s: s.shape)


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


def following(model, schedule, options=PLAIN, cfg=3.3):
    """A guider of a cfg that must not matter."""
    return tiny.guider(on_model(model, dataclasses.replace(options, schedule=schedule)), cfg)


def sigma_at(model, t):
    return float(model.model.model_sampling.sigma(torch.tensor(float(t))))


@authors
def test_plain_run_is_the_authors_rule(model, schedule, w_of):
    """D = D_c + w(t) (D_c − D_u)."""
    points = [(X, sigma_at(model, t)) for t in TIMES]
    d_cond = tiny.predict(tiny.guider(model, cfg=1.0), *points)
    d_uncond = tiny.predict(tiny.guider(model, cfg=0.0), *points)
    guided = tiny.predict(following(model, schedule), *points)
    for t, d, c, u in zip(TIMES, guided, d_cond, d_uncond, strict=True):
        w = w_of(t * 1000 / 999 if schedule.shape in ("linear", "cosine") else t)  # percent counts 999 to 0
        torch.testing.assert_close(d, c + w * (c - u), rtol=1e-4, atol=1e-4)


@authors
def test_with_reg_the_same_w_is_rectified(model, schedule, w_of):
    """No off-by-one: what REG rectifies at a moment is CFG's term at cfg = 1 + w of that moment."""
    points = [(X, sigma_at(model, t)) for t in TIMES]
    guided = tiny.predict(following(model, schedule, REG), *points)
    for t, point, d in zip(TIMES, points, guided, strict=True):
        w = w_of(t * 1000 / 999 if schedule.shape in ("linear", "cosine") else t)
        (same,) = tiny.predict(tiny.guider(on_model(model, REG), cfg=1 + w), point)
        torch.testing.assert_close(d, same, rtol=1e-4, atol=1e-4)


def edm_linear(t, guidance=2.0, end_scale=0.5, sigma_min=0.002, sigma_max=80.0):
    """zhengqigao/REG, EDM/generate_images.py, reg_linear and linear; t is their sigma."""
    k = (guidance - end_scale) / (sigma_max - sigma_min)
    return k * (t - sigma_max) + guidance


def edm_cosine(t, guidance=2.0, s=4.0, sigma_max=80.0):
    """zhengqigao/REG, EDM/generate_images.py, reg_cosine and cosine."""
    progress = 1.0 - t / sigma_max
    return (1 - math.cos(math.pi * progress**s)) * 0.5 * guidance


@pytest.mark.parametrize(
    ("schedule", "w_of"),
    [
        (GuidanceSchedule("linear", 3.0, cfg_end=1.5, counted_in="sigma"), edm_linear),
        (GuidanceSchedule("cosine", 3.0, power=4.0, counted_in="sigma"), edm_cosine),
    ],
    ids=["linear", "cosine"],
)
def test_counted_in_sigma_it_is_the_authors_for_edm2(schedule, w_of):
    class EDM2:  # its noise levels
        sigma_min, sigma_max = torch.tensor(0.002), torch.tensor(80.0)

        def percent_to_sigma(self, percent):
            raise AssertionError("percent is not asked for")

    cfg = schedule.cfg_by_sigma(EDM2())
    for sigma in (80.0, 40.0, 9.7, 2.0, 0.3, 0.002):
        assert cfg(sigma) - 1 == pytest.approx(w_of(sigma), abs=1e-6)


@pytest.mark.parametrize("options", [PLAIN, REG], ids=["plain", "reg"])
@every
def test_every_way_in_follows_it(model, schedule, options):
    scheduled = dataclasses.replace(options, schedule=schedule)
    by_model = tiny.sample(tiny.guider(on_model(model, scheduled)))
    node = REGGuider.execute(model, tiny.POSITIVE, tiny.NEGATIVE, 4.0, **tiny.node_inputs(scheduled))
    by_sampler = tiny.sample(tiny.guider(model), wrap=lambda s: RectifiedSampler(s, scheduled))
    torch.testing.assert_close(tiny.sample(node.args[0]), by_model)
    torch.testing.assert_close(by_sampler, by_model)
    assert (by_model - tiny.sample(tiny.guider(on_model(model, options)))).abs().max() > 1e-3


def test_steps_without_guidance_cost_one_pass(model):
    """ComfyUI's optimisation for cfg = 1 counts step by step, bit for bit."""
    network = model.model.diffusion_model
    for t, samples in [(999, 1), (700, 2), (300, 1)]:
        before = network.evaluated
        point = (X, sigma_at(model, t))
        guided = tiny.predict(following(model, INTERVAL), point)
        assert network.evaluated - before == samples * len(X)
        if samples == 1:
            assert torch.equal(guided[0], tiny.predict(tiny.guider(model, cfg=1.0), point)[0])


def test_the_guiders_own_cfg_is_back_after_every_run(model):
    guider = following(model, LINEAR)
    tiny.sample(guider)
    assert guider.cfg == 3.3
    assert "transformer_options" not in guider.model_options or not guider.model_options["transformer_options"].get(
        "wrappers", {}
    ).get("predict_noise")


def test_one_model_serves_two_runs(model):
    scheduled = following(model, COSINE, REG)
    assert torch.equal(tiny.sample(scheduled), tiny.sample(scheduled))


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "CFGOverride"), reason="this ComfyUI does not have it yet")
def test_it_wins_over_core_cfg_override(model):
    override = nodes_custom_sampler.CFGOverride
    overridden = override.execute(model, cfg=9.0, start_percent=0.0, end_percent=1.0).args[0]
    torch.testing.assert_close(tiny.sample(following(overridden, CONSTANT)), tiny.sample(tiny.guider(model, cfg=6.0)))


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_beyond_the_noise_levels_it_stays_at_its_ends(shape):
    """Churn adds noise beyond sigma_max."""
    levels = SimpleNamespace(sigma_min=torch.tensor(0.002), sigma_max=torch.tensor(80.0), percent_to_sigma=None)
    cfg = GuidanceSchedule(shape, 3.0, cfg_end=1.5, power=2.5, counted_in="sigma").cfg_by_sigma(levels)
    assert cfg(113.0) == cfg(80.0) and cfg(0.0) == pytest.approx(cfg(0.002), abs=1e-3)


def test_dual_cfg_without_guidance_has_nothing_to_scale(model):
    guider = Guider_DualCFG(on_model(model, Options(strength=0.0, schedule=CONSTANT)))
    plain = Guider_DualCFG(model)
    for one in (guider, plain):
        one.set_conds(tiny.POSITIVE, tiny.MIDDLE, tiny.NEGATIVE)
        one.set_cfg(3.0, 1.0)
    torch.testing.assert_close(tiny.predict(guider, (X, 2.0)), tiny.predict(plain, (X, 2.0)))


@pytest.mark.parametrize("nested", [False, True])
def test_dual_cfg_has_its_shown_term_scaled(model, nested):
    """That guider has no `cfg`; what it shows the hooks is cfg2's term, or nested cfg1's."""

    def dual(model, cfg1, cfg2):
        guider = Guider_DualCFG(model)
        guider.set_conds(tiny.POSITIVE, tiny.MIDDLE, tiny.NEGATIVE)
        guider.set_cfg(cfg1, cfg2, nested=nested)
        return guider

    scheduled = on_model(model, Options(strength=0.0, schedule=CONSTANT))
    expected = dual(model, *((6.0, 2.0) if nested else (3.0, 6.0)))
    point = (X, 2.0)
    with captured_warnings() as warned:
        (answer,) = tiny.predict(dual(scheduled, 3.0, 2.0), point)
    assert any("the guidance by the other stays" in sentence for sentence in warned)
    torch.testing.assert_close(answer, tiny.predict(expected, point)[0])


@pytest.mark.parametrize("prediction", ["EPS", "V_PREDICTION", "EDM", "FLOW"])
def test_percent_inverts_percent_to_sigma(prediction):
    to_sigma = tiny.as_model(tiny.Network(), prediction).model.model_sampling.percent_to_sigma
    for percent in (0.001, 0.1, 0.5, 0.77, 0.999):
        assert percent_of(float(to_sigma(percent)), to_sigma) == pytest.approx(percent, abs=2e-6)
    assert percent_of(1e12, to_sigma) == 0
    assert percent_of(0.0, to_sigma) == 1


@pytest.mark.parametrize("prediction", ["EPS", "FLOW"])
def test_interval_is_comfyuis_percent_with_both_ends(prediction):
    model = tiny.as_model(tiny.Network(), prediction)
    to_sigma = model.model.model_sampling.percent_to_sigma
    low, high = to_sigma(0.6), to_sigma(0.2)
    points = [(X, sigma) for sigma in (high * 1.01, high, low, low * 0.99)]
    answers = tiny.predict(following(model, INTERVAL), *points)
    plain = tiny.predict(tiny.guider(model, cfg=1.0), *points)
    assert [torch.equal(a, p) for a, p in zip(answers, plain, strict=True)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shape": "interval", "cfg": 5.0, "start_percent": 0.7, "end_percent": 0.2}, "comes after"),
        ({"shape": "interval", "cfg": 5.0, "start_percent": 0.4, "end_percent": 0.4}, "is empty"),
        ({"shape": "constant", "cfg": 1.0}, "is empty"),
        ({"shape": "linear", "cfg": 1.0, "cfg_end": 1.0}, "is empty"),
        ({"shape": "linear", "cfg": 5.0, "cfg_end": math.inf}, "between 0 and 100"),
        ({"shape": "constant", "cfg": math.nan}, "between 0 and 100"),
        ({"shape": "cosine", "cfg": 5.0, "power": 0.0}, "above 0"),
        ({"shape": "square", "cfg": 5.0}, "is one of constant, linear, cosine, interval"),
        ({"shape": "interval", "cfg": 5.0, "end_percent": 1.5}, "end_percent of a schedule must be between 0 and 1"),
    ],
)
def test_refused_on_the_node_in_one_sentence(values, words):
    with pytest.raises(ValueError, match=words) as error:
        REGSchedule.execute(values)
    assert str(error.value).startswith("REG: ")
    assert "\n" not in str(error.value)


def test_what_is_not_counted_in_sigma_is_refused():
    with pytest.raises(ValueError, match="REG: a schedule of shape constant is not counted in sigma"):
        REGSchedule.execute({"shape": "constant", "cfg": 5.0}, counted_in="sigma")


@every
def test_its_picture(schedule):
    picture = draw(schedule)
    assert picture.shape[0] == 1 and picture.shape[-1] == 3
    assert 0 <= picture.min() < picture.max() <= 1
    assert picture.dtype == torch.float32


@every
def test_its_curve_is_what_runs_do(model, schedule):
    percent, cfg = schedule.curve(11)
    by_sigma = schedule.cfg_by_sigma(model.model.model_sampling)
    inside = list(range(1, 10))  # at the ends ComfyUI's sigma is a stand-in for infinity and zero
    sigmas = [float(model.model.model_sampling.percent_to_sigma(percent[i].item())) for i in inside]
    assert [by_sigma(sigma) for sigma in sigmas] == pytest.approx(cfg[inside].tolist(), abs=1e-3)


def test_the_schema_offers_each_shape():
    schema = REGSchedule.define_schema()
    shape, counted_in = schema.inputs
    assert (counted_in.default, counted_in.options) == ("percent", ["percent", "sigma"])
    assert [option.key for option in shape.options] == ["constant", "linear", "cosine", "interval"]
    for option in shape.options:
        values = {i.id: i.default for i in option.inputs} | {"shape": option.key}
        GuidanceSchedule(**values)
    assert [output.io_type for output in schema.outputs] == ["REG_SCHEDULE", "IMAGE"]


def guided_in_a_server(server, shape, cfg):
    """A prompt that guides the demo model away from a poorer one, by a schedule if a shape is given."""
    options = workflow.widget_values({}, server.object_info()["REGAutoGuider"]) | {"cfg": cfg}
    links = {"model": ["model", 0], "weak_model": ["weak", 0], "positive": ["positive", 0]}
    parts = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    nodes = {
        "model": ("REGDemoModel", {}),
        "positive": ("REGDemoPrompt", {"shape": "square", "colour": "any", "background": "any", "count": "any"}),
        "weak": ("FreeU", {"model": ["model", 0], "b1": 0.9, "b2": 0.9, "s1": 0.9, "s2": 0.9}),
        "guider": ("REGAutoGuider", options | links | ({"schedule": ["schedule", 0]} if shape else {})),
        "noise": ("RandomNoise", {"noise_seed": 1}),
        "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": ("BasicScheduler", {"model": ["model", 0], "scheduler": "normal", "steps": 3, "denoise": 1.0}),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sample": ("SamplerCustomAdvanced", parts | {"latent_image": ["empty", 0]}),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "test"}),
    }
    if shape:
        nodes["schedule"] = ("REGSchedule", shape)
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    return server.wait(server.queue(prompt))


def test_in_a_server_it_shows_its_curve_and_is_followed(server):
    def latents(outputs):
        return load_safetensors(server.fetch(outputs["save"]["latents"][0]))["latent_tensor"]

    scheduled = guided_in_a_server(server, {"shape": "constant", "shape.cfg": 3.0}, cfg=1.0)
    assert len(scheduled["schedule"]["images"]) == 1
    torch.testing.assert_close(
        latents(scheduled), latents(guided_in_a_server(server, {}, cfg=3.0)), rtol=1e-4, atol=1e-4
    )
    late = {"shape": "interval", "shape.cfg": 3.0, "shape.start_percent": 0.8, "shape.end_percent": 0.3}
    with pytest.raises(PromptError, match="comes after"):
        guided_in_a_server(server, late, cfg=1.0)
