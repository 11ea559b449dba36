"""The record of a run: its numbers against what the run did, its bounds, and who gets it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.nested_tensor import NestedTensor
from comfy.utils import pack_latents
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.autoguidance import AutoGuider
from pack.guiders.options import Options
from pack.guiders.report import record
from pack.tests.guiders import tiny

SAMPLER = {"class_type": "KSampler", "inputs": {}}
REPORT = {"class_type": "REGReport", "inputs": {"latent": ["sampler", 0]}}
STEPS = 5


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


@pytest.fixture(autouse=True)
def no_records():
    record._records.clear()


def sample(guided, prompt=None, **options):
    """A run on the node "sampler" of a prompt; with a report unless told otherwise."""
    reset_progress_state("prompt", DynamicPrompt(prompt or {"sampler": SAMPLER, "report": REPORT}))
    with CurrentNodeContext("prompt", "sampler", 0):
        return tiny.sample(guided, STEPS, **options)


def recorded(model, options, cfg=4.0):
    return record.find(sample(tiny.guider(on_model(model, options), cfg)))


MEASURED = 4  # of five steps: 0, 1, 2 and 4
PASSES = {  # beyond one cond and one uncond a step; the first measurement checks that our evaluations are ComfyUI's
    ("elementwise", "backward"): (1 + 1, MEASURED),  # and has a graph of its own
    ("elementwise", "difference"): (1 + 3 + MEASURED, 0),  # and tries the probe in the batch, too
    ("jacobian", "backward"): (1 + 1, MEASURED),
    ("jacobian", "difference"): (1 + MEASURED, 0),
    ("ratio", "auto"): (2 + 2 * MEASURED, 0),
}


@pytest.mark.parametrize("kind", PASSES, ids="-".join)
def test_passes_are_those_of_the_model(model, kind):
    network = model.model.diffusion_model
    before = network.evaluated
    found = recorded(model, Options(*kind))
    evaluated = (network.evaluated - before) / 2  # of two samples
    assert found.passes["cond"] == found.passes["uncond"] == STEPS
    assert (found.passes["extra"], found.passes["reverse"]) == PASSES[kind]
    assert evaluated == found.passes["cond"] + found.passes["uncond"] + found.passes["extra"]


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_effective_cfg_is_reproduced_by_plain_guidance(model, strength):
    """Where one number multiplies the guidance, plain guidance at the effective cfg gives the same prediction."""
    x, sigma = tiny.latent(batch=1), 2.0
    reset_progress_state("prompt", DynamicPrompt({"sampler": SAMPLER, "report": REPORT}))
    seen = []
    keep = record.file
    try:
        record.file = lambda found, samples: seen.append(found)
        with CurrentNodeContext("prompt", "sampler", 0):
            (rectified,) = tiny.predict(tiny.guider(on_model(model, Options("ratio", strength=strength))), (x, sigma))
    finally:
        record.file = keep
    assert seen[0].plain_cfg.item() == pytest.approx(4, rel=1e-4)
    (plain,) = tiny.predict(tiny.guider(model, cfg=seen[0].cfg.item()), (x, sigma))
    torch.testing.assert_close(plain, rectified, rtol=1e-4, atol=1e-4)


def test_numbers_of_a_step_under_a_mask():
    """Of what is free, each sample by itself, at a strength."""
    g, r, kept = (tiny.latent(batch=2, seed=seed) for seed in (1, 2, 3))
    w = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    mask = (torch.arange(g.shape[-1]) < 2).float().expand(1, 1, *g.shape[-2:])
    outside = (1 - mask) * tiny.latent(batch=2, seed=4)
    step = SimpleNamespace(
        guidance=w * g + outside, sigma=torch.tensor([2.0, 2.0]), strength=0.5, d_cond=g, d_uncond=0 * g, mask=mask
    )
    *_, plain, cfg, correction = record._measures(step, w * r - outside, kept)
    g, r = g[..., :2], r[..., :2]
    along = ((g + r) / 2 * g).sum((1, 2, 3)) / (g * g).sum((1, 2, 3))
    torch.testing.assert_close(plain, torch.tensor(5.0))
    torch.testing.assert_close(cfg, 1 + (along * w.flatten()).mean())
    torch.testing.assert_close(correction, ((r - g).flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)).mean())


def test_pictures_are_of_high_middle_and_low_noise(model, monkeypatch):
    """Of the predictions without and with REG; maps of what is left."""
    frames, first_frames = [], record._first_frames

    def noted(step, rectified):
        frames.append((step.sigma[0], step.d_cond[:1] + step.guidance[:1], step.d_cond[:1] + rectified[:1]))
        return first_frames(step, rectified)

    monkeypatch.setattr(record, "_first_frames", noted)
    found = recorded(model, Options("jacobian", refresh=1))
    chosen = [frames[i] for i in (0, 2, 4)]  # of five steps
    picture = record.previewer(model.model.latent_format, frames[0][1])
    assert [sigma for sigma, *_ in found.previews] == [sigma.item() for sigma, *_ in chosen]
    for (_, before, after), (_, plain, rectified) in zip(found.previews, chosen, strict=True):
        assert torch.equal(before, picture(plain)) and torch.equal(after, picture(rectified))
    assert any(not torch.equal(before, after) for _, before, after in found.previews)
    assert len(found.maps) == 5 and min(map_.mean() for _, map_ in found.maps) < 0.99


def test_some_of_many_are_spread_over_all():
    assert record._spread_over(list(range(11)), 3) == [0, 5, 10]
    assert record._spread_over([1, 2], 3) == [1, 2]


@pytest.mark.parametrize(
    ("extra", "reverse", "words"),
    [
        (3, 2, "3 evaluations and 2 reverse passes more than"),
        (0, 2, "2 reverse passes more than"),
        (0, 0, "no more than"),
        (-4, 0, "4 evaluations fewer than"),
    ],
)
def test_the_cost_in_words(model, extra, reverse, words):
    found = recorded(model, Options())
    found = replace(found, passes={"cond": 5, "uncond": 5, "extra": extra, "reverse": reverse})
    assert found.cost_text().startswith(f"cost: {words} the 10 evaluations of CFG")


def test_the_passes_of_the_weak_model_are_counted(model):
    guider = AutoGuider(on_model(model, Options("elementwise", "backward")), tiny.as_model(tiny.Network(seed=1)))
    guider.set_conds(tiny.POSITIVE)
    guider.set_cfg(3.0)
    found = record.find(sample(guider))
    assert found.passes["cond"] == found.passes["uncond"] == STEPS


def test_numbers_of_a_step(model):
    """Against their definitions, for a map kept."""
    g, r, kept = (tiny.latent(batch=1, seed=seed) for seed in (1, 2, 3))
    step = type(
        "Step", (), dict(guidance=g, sigma=torch.tensor([2.0]), strength=1.0, d_cond=g / 3, d_uncond=0 * g, mask=None)
    )
    sigma, mean, spread, plain, cfg, correction = record._measures(step, r, kept)
    assert sigma == 2
    torch.testing.assert_close(mean, kept.mean())
    torch.testing.assert_close(spread, kept.std(correction=0))
    torch.testing.assert_close(plain, torch.tensor(4.0))
    torch.testing.assert_close(cfg, 1 + 3 * (g * r).sum() / (g * g).sum())
    torch.testing.assert_close(correction, (r - g).norm() / g.norm())


def test_maps_are_f_or_the_local_ratio():
    g = torch.ones(3, 128, 96)
    r = g * torch.linspace(0, 1, 96)
    local = record._map(g, r, torch.tensor([[[0.5]]]))
    assert local.shape == (64, 48)
    torch.testing.assert_close(local[0], torch.linspace(0, 1, 96).view(48, 2).mean(1))
    torch.testing.assert_close(record._map(g, r, r)[0], local[0])  # a kept map: its own values
    assert record._map(0 * g, 0 * g, torch.tensor([[[0.5]]])).eq(1).all()  # no guidance: nothing was taken from it
    assert record._map(torch.ones(4, 7, 8, 8), torch.ones(4, 7, 8, 8), torch.ones(1, 1, 1, 1)).shape == (8, 8)  # video


def test_a_run_that_nobody_asked_about_is_not_recorded(model):
    guided = tiny.guider(on_model(model, Options()))
    elsewhere = {**REPORT, "inputs": {"latent": ["other", 0]}}
    assert record.find(sample(guided, {"sampler": SAMPLER})) is None
    assert record.find(sample(guided, {"sampler": SAMPLER, "other": SAMPLER, "report": elsewhere})) is None
    assert record.find(tiny.sample(guided)) is None  # outside a server
    assert not record._records


def test_recording_changes_nothing(model):
    guided = tiny.guider(on_model(model, Options()))
    assert torch.equal(sample(guided), tiny.sample(guided, STEPS))


@pytest.mark.parametrize("way", ["model", "sampler"])
def test_found_by_the_latent_and_by_nothing_else(model, way):
    if way == "model":
        out = sample(tiny.guider(on_model(model, Options())))
    else:
        out = sample(tiny.guider(model), wrap=lambda sampler: RectifiedSampler(sampler, Options()))
    found = record.find(out)
    assert found is not None
    assert record.find(out.clone()) is found
    assert record.find(out.to("cpu", torch.float64)) is found
    assert record.find(out + 1e-3) is None
    assert record.find(out[:1]) is None


def test_found_by_the_last_prediction_too(model):
    shown = []
    guided = tiny.guider(on_model(model, Options()))
    samples = guided.sample

    def watched(*args, **kwargs):
        return samples(*args, callback=lambda i, x0, x, n: shown.append(x0), **kwargs)

    guided.sample = watched
    sample(guided, sampler="euler_ancestral")
    denoised_output = model.model.process_latent_out(shown[-1].cpu())  # as SamplerCustomAdvanced makes it
    assert record.find(denoised_output) is not None


def test_nested_latents_are_those_that_were_packed():
    parts = [tiny.latent(seed=1), tiny.latent(size=6, seed=2)]
    assert record.fingerprint(NestedTensor(parts)) == record.fingerprint(pack_latents(parts)[0])


def test_a_run_that_fails_leaves_nothing(model):
    class Failing:
        def sample(self, *args, **kwargs):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        sample(tiny.guider(model), wrap=lambda _: RectifiedSampler(Failing(), Options()))
    assert not record._records


def test_fallback_and_its_reason(model, monkeypatch):
    def without_gradient(self, v):
        raise RuntimeError("derivative for fused::op is not implemented")

    monkeypatch.setattr("pack.reg.estimators.Evaluation.pull_back", without_gradient)
    found = recorded(model, Options())
    assert found.estimator == "difference"
    assert "fused::op" in found.fallback
    assert "fused::op" in found.summary()


def test_a_run_without_guidance(model):
    found = recorded(model, Options(), cfg=1.0)
    assert len(found.sigma) == 0
    assert "no step was guided" in found.summary()


def test_memory_is_bounded():
    steps = record.Thinned(10)
    for i in range(1000):
        steps.add(lambda i=i: i)
    assert len(steps.items) <= 10
    assert steps.items == list(range(0, 1000, steps.stride))
    for i in range(200):
        record.file(i, torch.full([1], float(i)))
    assert len(record._records) == 2 * 32  # runs, under two latents each, as the help page says
    assert record.find(torch.full([1], 199.0)) == 199
