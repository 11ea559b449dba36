"""A rectification is one class, an estimator one more: added from outside, they are everywhere, and nothing stands for them."""

import importlib.util

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext

from pack.devtools import locales
from pack.guiders.attach import memory, on_model
from pack.guiders.estimators import ESTIMATORS
from pack.guiders.estimators.base import Estimator
from pack.guiders.options import Options
from pack.guiders.report import record
from pack.lab import guides, worlds
from pack.reg import schedules
from pack.reg.profile import Profile
from pack.reg.rectification import RECTIFICATIONS, Needs, Rectification
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

X, SIGMA, CFG = tiny.latent() * 2, 1.7, 4.0


class Halving(Rectification):
    """R(g) = g / (1 + σ), without asking the model."""

    name, label, symbol, colour = "halving", "half of it", "η", "#123456"
    text = "a toy that halves the guidance where the noise is as large as the picture"
    needs, curve = Needs.NOTHING, "gain"

    def measure(self, step):
        value = (1 / (1 + step.sigma)).view(-1, *[1] * (step.x.ndim - 1))
        return value * step.guidance, value


class Third(Estimator):
    """A toy that takes J_c for a third and J_u for one half, and asks the model nothing."""

    name = "third"

    def vjp(self, evaluator, state, v):
        return v / 3

    def products(self, evaluator, state, v):
        return v / 3, v / 2

    @staticmethod
    def memory(model, options):
        return 7.0


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(RECTIFICATIONS, Halving.name, Halving())
    monkeypatch.setitem(ESTIMATORS, Third.name, Third)


def fresh(name):
    """A module of the pack as it is when it is imported with what was added."""
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def predictions(model, options):
    """D_c, g and the rectified prediction."""
    (cond,), (guided,), (rectified,) = (
        tiny.predict(tiny.guider(m, cfg), (X, SIGMA))
        for m, cfg in ((model, 1.0), (model, CFG), (on_model(model, options), CFG))
    )
    return cond, guided - cond, rectified


def test_every_node_offers_them(added):
    """In its list and in the tooltip that explains the list."""
    offering = {
        schema.node_id: {entry.id: entry for entry in schema.inputs}
        for schema in locales.schemas()
        if any(entry.id == "rectification" for entry in schema.inputs)
    }
    assert {"REGModel", "REGGuider", "REGAutoGuider", "REGSampler", "REGToy"} <= offering.keys()
    for inputs in offering.values():
        assert Halving.label in inputs["rectification"].options
        if "estimator" in inputs:
            assert Third.name in inputs["estimator"].options
            assert f"{Halving.label}: {Halving.text}." in inputs["rectification"].tooltip


@pytest.mark.parametrize("asked", [Halving.name, Halving.label])
def test_the_rule_is_what_a_run_does(added, asked):
    """R(g) = g / (1 + σ), at no evaluation but the one that sees whether ours agrees with ComfyUI's."""
    model = tiny.as_model(tiny.Network())
    with captured_warnings() as lines:
        cond, g, rectified = predictions(model, Options(asked))
    torch.testing.assert_close(rectified, cond + g / (1 + SIGMA), rtol=1e-5, atol=1e-5)
    assert lines == []
    before = model.model.diffusion_model.evaluated
    tiny.predict(tiny.guider(on_model(model, Options(asked))), *[(X, SIGMA)] * 5)
    assert model.model.diffusion_model.evaluated - before == (5 * 2 + 1) * len(X)


def test_the_rule_reads_a_profile(added):
    curves = {name: torch.full((2,), 0.25) for name in ("gain", "rho", "effect")}
    profile = Profile(
        torch.tensor([0.1, 10.0]),
        torch.full((2, 3), 0.25),
        *curves.values(),
        about={"prediction": "EPS", "channels": "3"},
    )
    cond, g, rectified = predictions(tiny.as_model(tiny.Network()), Options("halving", profile=profile))
    torch.testing.assert_close(rectified, cond + 0.25 * g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["elementwise", "jacobian", "ratio"])
def test_the_estimator_is_what_measures(added, rule):
    """f = 1/3, R(g) = g/3, and ρ = 2/3 with f = ρ / (1 + w (1 − ρ)): no other estimator's numbers, nor its evaluations."""
    model = tiny.as_model(tiny.Network())
    options = Options(rule, Third.name)
    with captured_warnings() as lines:
        cond, g, rectified = predictions(model, options)
    rho, w = 2 / 3, CFG - 1
    factor = rho / (1 + w * (1 - rho)) if rule == "ratio" else 1 / 3
    torch.testing.assert_close(rectified, cond + factor * g, rtol=1e-4, atol=1e-4)
    assert lines == []
    before = model.model.diffusion_model.evaluated
    tiny.predict(tiny.guider(on_model(model, options)), *[(X, SIGMA)] * 5)
    checked = 2 if rule == "ratio" else 1  # predictions, once a run, against ComfyUI's
    assert model.model.diffusion_model.evaluated - before == (5 * 2 + checked) * len(X)
    assert memory(options, model.model) == 7.0


def test_the_report_names_them(added):
    model = tiny.as_model(tiny.Network())
    prompt = {
        "sampler": {"class_type": "KSampler", "inputs": {}},
        "report": {"class_type": "REGReport", "inputs": {"latent": ["sampler", 0]}},
    }
    found = []
    for options in (Options("halving", refresh=1), Options("elementwise", "third", refresh=1)):
        reset_progress_state("prompt", DynamicPrompt(prompt))
        with CurrentNodeContext("prompt", "sampler", 0):
            found.append(record.find(tiny.sample(tiny.guider(on_model(model, options), CFG))))
    by_rule, by_estimator = found
    assert by_rule.kept_name == "η"
    torch.testing.assert_close(by_rule.kept, 1 / (1 + by_rule.sigma))
    assert Halving.label in by_rule.summary() and "mean η" in by_rule.summary()
    assert by_estimator.estimator == "third" and by_estimator.fallback == ""
    torch.testing.assert_close(by_estimator.kept, torch.full_like(by_estimator.kept, 1 / 3))
    assert by_rule.passes["reverse"] == by_estimator.passes["reverse"] == 0


def test_the_lab_judges_the_rule_by_the_same_object(added):
    rules = guides.all_rules()
    assert rules["halving"] is RECTIFICATIONS["halving"]
    pair, w, sigma = worlds.classes(13), 3.0, 0.7
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d_cond, d_uncond = (d.denoise(x, sigma) for d in (pair.cond, pair.uncond))
    found = guides.Guide(pair, schedules.constant(w), rules["halving"])(x, sigma)
    torch.testing.assert_close(found, d_cond + w * (d_cond - d_uncond) / (1 + sigma))


def test_the_labs_figures_show_the_rule(added):
    pytest.importorskip("matplotlib")
    figures = fresh("pack.lab.figures")
    axes = figures.narrowing().axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == Halving.label]
    assert line.get_color() == Halving.colour
    sigma, left = map(torch.tensor, line.get_data())
    torch.testing.assert_close(left, 1 / (1 + sigma), rtol=1e-5, atol=1e-5)


def test_the_tables_of_the_lab_and_of_the_bench_have_the_rule(added):
    pytest.importorskip("pandas")
    tables, trials = fresh("pack.research.lab.tables"), fresh("pack.research.lab.trials")
    assert trials.rule_of("halving", worlds.classes(13)) is RECTIFICATIONS["halving"]
    assert "cfg+halving" in tables.CHAINS
    rules = fresh("pack.research.quality.rules")
    assert "halving doubling" in rules.NAMES
    model = tiny.as_model(tiny.Network())
    (patched,) = tiny.predict(tiny.guider(rules.patch("halving doubling", model, CFG, None), CFG), (X, SIGMA))
    torch.testing.assert_close(patched, predictions(model, Options("halving"))[2])


@pytest.mark.parametrize("option", ["rectification", "estimator"])
def test_what_nobody_added_is_refused(option):
    """Unknown names do not run as something else."""
    with pytest.raises(ValueError, match=rf"REG: {option} must be one of"):
        Options(**{option: "halving" if option == "rectification" else "third"})


def test_an_estimator_that_cannot_measure_says_so(added):
    """It is not taken for another one: the guidance stays, in one sentence."""

    class Unable(Third):
        def vjp(self, evaluator, state, v):
            raise NotImplementedError("thirds of this are not known")

    ESTIMATORS[Third.name] = Unable
    model = tiny.as_model(tiny.Network())
    with captured_warnings() as lines:
        cond, g, rectified = predictions(model, Options("elementwise", "third"))
    torch.testing.assert_close(rectified, cond + g)
    assert len(lines) == 1 and "thirds of this are not known" in lines[0]
