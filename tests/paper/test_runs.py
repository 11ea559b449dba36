"""Whole runs on DiT and EDM2 are the authors' runs, whatever their rule: their formulas, written out beside."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.nodes.imagenet import REGDDPM
from pack.paper import classes, models, sampling
from pack.research.imagenet import rules
from pack.research.imagenet.rules import Rule
from pack.tests.guiders.tiny import Network, as_model, predict
from pack.tests.guiders.tiny import guider as tiny_guider
from pack.tests.paper import paper_dit, paper_edm2, tiny
from pack.tests.paper.test_dit import of_diffusers

STEPS = 8
IDS = [3, 7]
NOISE = tiny.latent(seed=1)
CLOSE = 1e-5  # of the largest number in a latent

DIT_RULES = ["original", "intervalt 100 700", "linear 0.5", "cosine 1.5"]
EDM2_RULES = ["original", "intervalt 0.28 12", "linear 0.5", "cosine 1.5"]


def both(texts):
    return [Rule.parse(prefix + text) for text in texts for prefix in ("", "reg_")]


def later_noises():
    generator = torch.Generator().manual_seed(9)
    while True:
        yield torch.randn(NOISE.shape, generator=generator)


def dit_state():
    """A DiT whose noise and variance are about 1."""
    state = tiny.dit_state()
    state["final_layer.linear.weight"] *= 0.1
    return state


@torch.inference_mode()
def run(guider, sampler, sigmas):
    return guider.sample(NOISE, torch.zeros_like(NOISE), sampler, sigmas, disable_pbar=True, seed=5).clone()


def assert_close(here, expected):
    assert (here - expected).abs().max() <= CLOSE * expected.abs().max()


@pytest.mark.parametrize("rule", both(DIT_RULES), ids=str)
def test_dit(tmp_path, rule):
    state = dit_state()
    model = models.load_dit(tiny.save(state, tmp_path / "dit.pt"))
    guider = rules.guider(rule, 1.5, model, classes.conditioning(IDS), classes.conditioning([]))
    noises = later_noises()
    sampler = comfy.samplers.KSAMPLER(sampling.sample_ddpm, {"noise_sampler": lambda *sigmas: next(noises)})
    here = run(guider, sampler, sampling.spaced_sigmas(model, STEPS))
    theirs = of_diffusers(state, heads=1, depth=2, size=8).double()

    def network(x, t, conditional):
        labels = torch.tensor(IDS) if conditional else torch.full([2], tiny.CLASSES)
        return theirs(x, torch.full([2], t), class_labels=labels).sample

    noises = (noise.double() for noise in later_noises())
    authors = rule.shape, 1.5, rule.numbers, rule.rectified
    assert_close(here, paper_dit.sample(network, NOISE.double(), STEPS, noises, *authors))


@pytest.mark.parametrize("rule", both([*EDM2_RULES, "autog"]), ids=str)
def test_edm2(tmp_path, rule):
    state, weak = tiny.edm2_state(), tiny.edm2_state(seed=1, blocks=2)
    load = [tiny.save(s | tiny.encoder(), tmp_path / f"{i}.safetensors") for i, s in enumerate((state, weak))]
    model, weak_model = (models.load_edm2(path, "float32") for path in load)
    away = weak_model if rule.guides_by_a_weaker_model else None
    guider = rules.guider(rule, 2.0, model, classes.conditioning(IDS), classes.conditioning([]), away)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS)
    here = model.model.latent_format.process_in(run(guider, comfy.samplers.sampler_object("heun"), sigmas))
    label = torch.nn.functional.one_hot(torch.tensor(IDS), tiny.CLASSES)

    def denoise(x, t):
        """The authors' `denoise` in EDM/generate_images.py, branch by branch."""
        x = x.clone().requires_grad_(True)
        d = paper_edm2.denoise(state, x, t, label)
        (gradient,) = torch.autograd.grad(d.sum(), x)
        d = d.detach()
        autoguidance = rule.shape == "autog"
        away = d - paper_edm2.denoise(weak if autoguidance else state, x.detach(), t, label if autoguidance else None)
        factor, w = (gradient, 2.0) if rule.rectified else (1.0, 1.0)  # a plain 2.0 is a cfg, but not in these:
        if rule.shape == "intervalt" and not rule.numbers[0] <= t <= rule.numbers[1]:
            w = 0.0
        elif rule.shape == "linear":
            w = (2.0 - rule.numbers[0]) / (80 - 0.002) * (t - 80) + 2.0
        elif rule.shape == "cosine":
            w = (1 - math.cos(math.pi * (1 - t / 80) ** rule.numbers[0])) * 0.5 * 2.0
        return d + w * factor * away

    ramp = torch.arange(STEPS, dtype=torch.float64) / (STEPS - 1)
    times = [*(80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, torch.tensor(0.0)]
    x = NOISE.double() * times[0]
    for now, after in pairwise(times):
        slope = (x - denoise(x, now)) / now
        moved = x + (after - now) * slope
        if after > 0:
            moved = x + (after - now) * (slope + (moved - denoise(moved, after)) / after) / 2
        x = moved
    assert_close(here, x)


def test_the_timesteps_of_250_steps_are_the_authors(tmp_path):
    model = models.load_dit(tiny.save(tiny.dit_state(), tmp_path / "dit.pt"))
    sigmas = REGDDPM.execute(model, 250).args[1]
    of_all = model.get_model_object("model_sampling").sigmas
    assert torch.equal(sigmas, torch.cat([of_all[paper_dit.spaced(250)[::-1]], torch.zeros(1)]))


def test_other_samplers_and_rules_are_other_runs(tmp_path):
    """By much more than what is called close here. That stock ddpm is one is why there is a sampler of our own."""
    model = models.load_dit(tiny.save(dit_state(), tmp_path / "dit.pt"))
    sigmas = sampling.spaced_sigmas(model, STEPS)

    def sampled(rule, sampler):
        guider = rules.guider(Rule.parse(rule), 1.5, model, classes.conditioning(IDS), classes.conditioning([]))
        return run(guider, sampler, sigmas)

    ours = sampled("original", sampling.ddpm())
    stock = sampled("original", comfy.samplers.sampler_object("ddpm"))
    rectified = sampled("reg_original", sampling.ddpm())
    for other in (stock, rectified):
        assert (ours - other).abs().max() > 20 * CLOSE * ours.abs().max()


def test_a_part_that_is_masked_stays(tmp_path):
    model = models.load_dit(tiny.save(dit_state(), tmp_path / "dit.pt"))
    guider = rules.guider(Rule("original", True), 1.5, model, classes.conditioning(IDS), classes.conditioning([]))
    given, mask = tiny.latent(seed=4), torch.zeros(2, 1, 8, 8)
    mask[..., 4:] = 1.0
    with torch.inference_mode():
        out = guider.sample(
            NOISE, given, sampling.ddpm(), sampling.spaced_sigmas(model, 4), mask, disable_pbar=True, seed=5
        )
    torch.testing.assert_close(out[..., :4], given[..., :4], rtol=1e-4, atol=1e-4)
    assert (out[..., 4:] - given[..., 4:]).abs().mean() > 0.1


def test_a_model_without_a_variance_is_refused():
    model = as_model(Network())
    with pytest.raises(ValueError, match="REG: this model tells no variance"):
        noise = torch.randn(2, 3, 4, 4)
        sigmas = sampling.spaced_sigmas(model, 4)
        tiny_guider(model).sample(noise, torch.zeros_like(noise), sampling.ddpm(), sigmas, disable_pbar=True)
    with pytest.raises(ValueError, match="REG: DDPM takes 2 to 1000"):
        sampling.spaced_sigmas(as_model(Network(), "FLOW"), 4)


@pytest.mark.parametrize("text", ["sine", "cosine", "intervalt 1", "linear much", "original 3", "cosine nan"])
def test_what_is_no_rule(text):
    with pytest.raises(ValueError, match=f'REG: "{text}" is no rule: they are original, intervalt'):
        Rule.parse(text)


REG_KINDS = [
    Options(rectification="elementwise", estimator="backward", refresh=1),
    Options(rectification="elementwise", estimator="difference", refresh=1),
    Options(rectification="jacobian", estimator="backward", refresh=1),
    Options(rectification="ratio", refresh=1),
]


@pytest.mark.parametrize("options", REG_KINDS, ids=lambda o: f"{o.rectification} {o.estimator}")
def test_what_reg_asks_the_network_beside_does_not_change_the_variance(tmp_path, options):
    """With next to no strength, every way to measure leaves the run as it is without REG."""
    model = models.load_dit(tiny.save(dit_state(), tmp_path / "dit.pt"))
    runs = []
    for patched in (model, on_model(model, replace(options, strength=1e-7))):
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(classes.conditioning(IDS), classes.conditioning([]))
        guider.set_cfg(2.5)
        runs.append(run(guider, sampling.ddpm(), sampling.spaced_sigmas(model, STEPS)))
    assert_close(runs[1], runs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("system", ["dit", "edm2"])
def test_gradients_go_through_whole_and_in_blocks(tmp_path, caplog, system, dtype):
    """Blocks that are evaluated again in the reverse pass change nothing, and no gradient is given up."""
    if system == "dit":
        model = models.load_dit(tiny.save(dit_state(), tmp_path / "dit.pt"), dtype=dtype)
    else:
        state = tiny.edm2_state() | tiny.encoder()
        model = models.load_edm2(tiny.save(state, tmp_path / "edm2.safetensors"), dtype)
    out = []
    for checkpoint in ("off", "always"):
        options = Options(rectification="elementwise", estimator="backward", refresh=1, checkpoint=checkpoint)
        guider = comfy.samplers.CFGGuider(on_model(model, options))
        guider.set_conds(classes.conditioning(IDS), classes.conditioning([]))
        guider.set_cfg(2.5)
        out += predict(guider, (NOISE * 3, 3.0))
    assert_close(out[1], out[0])
    assert "no gradient" not in caplog.text


def test_the_variance_of_which_prompt_is_not_known_with_two_scales(tmp_path):
    guider = Guider_DualCFG(models.load_dit(tiny.save(dit_state(), tmp_path / "dit.pt")))
    guider.set_conds(*(classes.conditioning([i]) for i in (1, 2, 3)))
    guider.set_cfg(4.0, 1.0)
    with pytest.raises(ValueError, match="REG: REG DDPM takes the variance of one prompt"):
        run(guider, sampling.ddpm(), torch.tensor([1.0, 0.5, 0.0]))
