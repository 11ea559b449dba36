"""What people add to a prompt or a run, on the tiny network, through ComfyUI's nodes: against predictions and steps
written out by hand. What is added to larger networks is in `test_added_networks.py`."""

from dataclasses import replace
from inspect import signature
from itertools import chain

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.sample
import comfy.samplers
import torch
from comfy_extras import nodes_context_windows, nodes_custom_sampler, nodes_hooks, nodes_model_advanced
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

import nodes  # ComfyUI's
from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.guiders import by_hand, tiny

CFG, SIGMA = 4.0, 1.7
SIZE = 12
BACKWARD = Options("elementwise", "backward")

kinds = pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)


@pytest.fixture
def model():
    return tiny.as_model(by_hand.Narrowing())


def cfg(d_cond, d_uncond):
    return d_uncond + CFG * (d_cond - d_uncond)


def guider(model, positive=tiny.POSITIVE, negative=tiny.NEGATIVE):
    return nodes_custom_sampler.CFGGuider.execute(model, positive, negative, CFG).args[0]


def at(model, text, sigma=SIGMA):
    """x -> D(x)."""
    denoised = by_hand.prediction(model, text)
    return lambda x: denoised(x, torch.full([len(x)], float(sigma)))


def check(answers, options, conditional, unconditional, x, alpha=1.0):
    """Each answer is D_c + R(g)."""
    expected = by_hand.step(options, conditional, unconditional, cfg, x, alpha)
    for answer in answers:
        by_hand.assert_same(answer, expected, (CFG - 1) * (conditional(x) - unconditional(x)))


def predicted(guider, x, sigma=SIGMA):
    """Twice, for the second is in the batch that the first one tried."""
    return tiny.predict(guider, (x, sigma), (x, sigma))


# Regional prompts


EVERYWHERE = (0, SIZE, 0, SIZE)


def blended(*parts):
    """D(x) = Σ w D_i(x) / Σ w, of parts (D_i, w [h, w], where (top, bottom, left, right)) that see their area only."""

    def denoised(x):
        total, weight = torch.zeros_like(x), torch.zeros(x.shape[-2:])
        for d, w, (top, bottom, left, right) in parts:
            pad = (left, SIZE - right, top, SIZE - bottom)
            total = total + torch.nn.functional.pad(w * d(x[..., top:bottom, left:right]), pad)
            weight = weight + torch.nn.functional.pad(w, pad)
        return total / weight

    return denoised


def combined(*conditionings):
    return list(chain(*conditionings))


@kinds
def test_areas(model, options):
    """Of the right two thirds: its left edge fades in over a quarter of it, and the negative has the same area."""
    x = tiny.latent(2, SIZE)
    (area,) = nodes.ConditioningSetArea().append(tiny.MIDDLE, width=8 * 8, height=SIZE * 8, x=4 * 8, y=0, strength=0.7)
    place, fade = (0, SIZE, 4, SIZE), torch.tensor([0.5] + [1.0] * 7)
    everywhere, within = torch.ones(SIZE, SIZE), 0.7 * fade.expand(SIZE, 8)
    conditional, unconditional = (
        blended((at(model, all_over), everywhere, EVERYWHERE), (at(model, there), within, place))
        for all_over, there in ((tiny.POSITIVE, tiny.MIDDLE), (tiny.NEGATIVE, tiny.NEGATIVE))
    )
    regional = guider(on_model(model, options), combined(tiny.POSITIVE, area))
    check(predicted(regional, x), options, conditional, unconditional, x)


@kinds
def test_masks(model, options):
    x = tiny.latent(2, SIZE)
    left = torch.linspace(1, 0, SIZE).expand(SIZE, SIZE)
    (one,) = nodes.ConditioningSetMask().append(tiny.POSITIVE, left, "default", 1.0)
    (other,) = nodes.ConditioningSetMask().append(tiny.MIDDLE, 1 - left, "default", 0.5)
    conditional = blended(
        (at(model, tiny.POSITIVE), left, EVERYWHERE), (at(model, tiny.MIDDLE), 0.5 * (1 - left), EVERYWHERE)
    )
    regional = guider(on_model(model, options), combined(one, other))
    check(predicted(regional, x), options, conditional, at(model, tiny.NEGATIVE), x)


@kinds
def test_a_mask_with_its_bounds_as_the_area(model, options):
    x, mask = tiny.latent(2, SIZE), torch.zeros(SIZE, SIZE)
    mask[2:10, 4:12] = 0.8
    (part,) = nodes.ConditioningSetMask().append(tiny.MIDDLE, mask, "mask bounds", 1.0)
    everywhere, place = torch.ones(SIZE, SIZE), (2, 10, 4, 12)
    conditional, unconditional = (
        blended((at(model, all_over), everywhere, EVERYWHERE), (at(model, there), mask[2:10, 4:12], place))
        for all_over, there in ((tiny.POSITIVE, tiny.MIDDLE), (tiny.NEGATIVE, tiny.NEGATIVE))
    )
    regional = guider(on_model(model, options), combined(tiny.POSITIVE, part))
    check(predicted(regional, x), options, conditional, unconditional, x)


@kinds
def test_a_default_prompt_where_no_mask_is(model, options):
    x, mask = tiny.latent(2, SIZE), torch.zeros(SIZE, SIZE)
    mask[:, :5] = 1
    (part,) = nodes.ConditioningSetMask().append(tiny.POSITIVE, mask, "default", 1.0)
    positive = nodes_hooks.ConditioningSetDefaultAndCombine().set_default_and_combine(part, tiny.MIDDLE)[0]
    conditional = blended((at(model, tiny.POSITIVE), mask, EVERYWHERE), (at(model, tiny.MIDDLE), 1 - mask, EVERYWHERE))
    regional = guider(on_model(model, options), positive)
    check(predicted(regional, x), options, conditional, at(model, tiny.NEGATIVE), x)


@kinds
def test_prompts_of_a_part_of_the_schedule(model, options):
    x, to_sigma = tiny.latent(2, SIZE), model.model.model_sampling.percent_to_sigma
    (early,) = nodes.ConditioningSetTimestepRange().set_range(tiny.POSITIVE, 0.0, 0.5)
    (late,) = nodes.ConditioningSetTimestepRange().set_range(tiny.MIDDLE, 0.5, 1.0)
    scheduled = guider(on_model(model, options), combined(early, late))
    points = [(x, to_sigma(0.3)), (x, to_sigma(0.5)), (x, to_sigma(0.7))]
    first, border, second = tiny.predict(scheduled, *points)
    half = torch.full([SIZE, SIZE], 0.5)
    for answer, (_, sigma), active in zip(
        (first, border, second), points, ([tiny.POSITIVE], [tiny.POSITIVE, tiny.MIDDLE], [tiny.MIDDLE]), strict=True
    ):
        conditional = blended(*((at(model, text, sigma), half, EVERYWHERE) for text in active))
        check([answer], options, conditional, at(model, tiny.NEGATIVE, sigma), x)


# Batches


@kinds
def test_a_batch_with_a_prompt_and_a_noise_level_for_each(options):
    """As some samplers and video models have them. Flow: so α too is of each sample."""
    model, x = tiny.as_model(by_hand.Narrowing(), "FLOW"), tiny.latent(3)
    sigma = torch.tensor([0.2, 0.5, 0.9])
    texts = [torch.cat([tiny.prompt(seed + i)[0][0] for i in range(3)]) for seed in (10, 20)]
    positive, negative = ([[text, {}]] for text in texts)
    denoised = [by_hand.prediction(model, cond) for cond in (positive, negative)]
    conditional, unconditional = (lambda x, d=d: d(x, sigma) for d in denoised)
    each = EachItsSigma(x, sigma)
    with torch.inference_mode():
        guider(on_model(model, options), positive, negative).sample(
            torch.zeros_like(x), torch.zeros_like(x), each, torch.tensor([1.0, 0.0]), disable_pbar=True
        )
    check(each.denoised, options, conditional, unconditional, x, (1 - sigma).view(3, 1, 1, 1))


class EachItsSigma(comfy.samplers.Sampler):
    """Not a sampler: asks twice for the guided prediction, at a sigma [batch]."""

    def __init__(self, x, sigma):
        self.x, self.sigma = x, sigma

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.denoised = [model_wrap(self.x, self.sigma, **extra_args).clone() for _ in range(2)]
        return noise


@kinds
@pytest.mark.parametrize("shape", [(1, 7), (5, 1), (9, 13)])
def test_odd_sizes(model, options, shape):
    x = torch.randn(1, tiny.CHANNELS, *shape, generator=torch.Generator().manual_seed(0))
    answers = predicted(guider(on_model(model, options)), x)
    check(answers, options, at(model, tiny.POSITIVE), at(model, tiny.NEGATIVE), x)


# Noise schedules of other models


SCHEDULES = [
    ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}, "EPS", 1.7, 1.0),
    ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": True}, "EPS", 1.7, 1.0),
    ("ModelSamplingDiscrete", {"sampling": "x0", "zsnr": False}, "EPS", 1.7, 1.0),
    ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}, "EPS", 1.7, 1.0),
    ("ModelSamplingStableCascade", {"shift": 2.0}, "STABLE_CASCADE", 1.7, 1.0),
    ("ModelSamplingSD3", {"shift": 5.0}, "FLOW", 0.6, 0.4),
    ("ModelSamplingAuraFlow", {"shift": 3.0}, "FLOW", 0.6, 0.4),
    ("ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 768}, "FLUX", 0.6, 0.4),
    *(
        ("ModelSamplingContinuousEDM", {"sampling": kind, "sigma_max": 120.0, "sigma_min": 0.002}, "EPS", 1.7, 1.0)
        for kind in ("v_prediction", "edm", "eps", "cosmos_rflow")
    ),
    ("ModelSamplingContinuousV", {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03}, "EPS", 1.7, 1.0),
]
SLOW = "ModelSamplingStableCascade"  # seconds for each: one rule
CASES = [(*row, options) for row in SCHEDULES for options in by_hand.EVERY_KIND[: 1 if row[0] == SLOW else None]]
ids = [f"{node}-{inputs.get('sampling', inputs.get('shift'))}-{by_hand.name(o)}" for node, inputs, *_, o in CASES]


@pytest.mark.parametrize(("node", "inputs", "prediction", "sigma", "alpha", "options"), CASES, ids=ids)
def test_model_sampling_nodes(node, inputs, prediction, sigma, alpha, options):
    """Before REG or after it: prediction, α and the range are those of the schedule that samples."""
    plain, x = tiny.as_model(by_hand.Narrowing(), prediction), 2 * tiny.latent(2)
    node = getattr(nodes_model_advanced, node)()
    shift = lambda model: getattr(node, node.FUNCTION)(model, **inputs)[0]  # noqa: E731
    shifted = shift(plain)
    conditional, unconditional = (at(shifted, text, sigma) for text in (tiny.POSITIVE, tiny.NEGATIVE))
    for model in (on_model(shifted, options), shift(on_model(plain, options))):
        check(predicted(guider(model), x, sigma), options, conditional, unconditional, x, alpha)


@pytest.mark.parametrize("first", ["REG", "shift"])
def test_the_range_is_of_the_schedule_that_samples(first):
    """SD3's shift moves the sigma of a percent; whichever node comes first."""
    plain, x = tiny.as_model(by_hand.Narrowing(), "FLOW"), tiny.latent(2)
    ranged = Options("elementwise", "backward", start_percent=0.3, end_percent=0.6)
    shift = lambda model: nodes_model_advanced.ModelSamplingSD3().patch(model, 5.0)[0]  # noqa: E731
    model = shift(on_model(plain, ranged)) if first == "REG" else on_model(shift(plain), ranged)
    moved = lambda t: 5 * t / (1 + 4 * t)  # noqa: E731
    sigmas = [moved(0.75), moved(0.65), moved(0.45), moved(0.35)]
    answers = tiny.predict(guider(model), *((x, sigma) for sigma in sigmas))
    plain_answers = tiny.predict(guider(shift(plain)), *((x, sigma) for sigma in sigmas))
    same = [torch.equal(a, p) for a, p in zip(answers, plain_answers, strict=True)]
    assert same == [True, False, False, True]


# Context windows


def windowed(d, windows, weights, dim):
    """D(x) = Σ w D(x in the window) / Σ w."""

    def denoised(x):
        total, weight = torch.zeros_like(x), torch.zeros(x.shape[dim])
        for start in windows:
            frames = torch.arange(start, start + len(weights))
            w = weights.view(-1, *[1] * (x.ndim - dim - 1))
            total = total.index_add(dim, frames, w * d(x.index_select(dim, frames)))
            weight = weight.index_add(0, frames, weights)
        return total / weight.view(-1, *[1] * (x.ndim - dim - 1))

    return denoised


def windows_of_four(model, fuse, dim):
    """The model in windows that overlap by two."""
    node = nodes_context_windows.ContextWindowsManualNode
    newer = {"causal_window_fix": False} if "causal_window_fix" in signature(node.execute).parameters else {}
    return node.execute(model, 4, 2, "standard_static", 1, False, fuse, dim, False, **newer).args[0]


@kinds
@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("fuse", ["pyramid", "flat"])
def test_context_windows(model, options, dim, fuse):
    """Six frames in windows of four: along the batch, as in AnimateDiff, or within the latent, as in video models."""
    x = tiny.latent(6 if dim == 0 else 1, 6)
    weights = torch.tensor([1.0, 2.0, 2.0, 1.0]) if fuse == "pyramid" else torch.ones(4)
    in_windows = windows_of_four(on_model(model, options), fuse, dim)
    conditional, unconditional = (
        windowed(at(model, text), (0, 2), weights, dim) for text in (tiny.POSITIVE, tiny.NEGATIVE)
    )
    check(predicted(guider(in_windows), x), options, conditional, unconditional, x)


@kinds
def test_a_patch_of_the_predictions_in_context_windows(model, options):
    """D_c is what the windows gave, before the patch; what the patch adds to it is guidance."""
    x = tiny.latent(1, 6)
    in_windows = windows_of_four(on_model(model, options), "flat", 2)
    in_windows.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0] + 0.2 * x, args["conds_out"][1]])
    conditional, unconditional = (
        windowed(at(model, text), (0, 2), torch.ones(4), 2) for text in (tiny.POSITIVE, tiny.NEGATIVE)
    )

    def guided(d_cond, d_uncond):
        return cfg(d_cond + 0.2 * x, d_uncond)

    expected = by_hand.step(options, conditional, unconditional, guided, x, 1.0)
    for found in predicted(guider(in_windows), x):
        by_hand.assert_same(found, expected, guided(conditional(x), unconditional(x)) - conditional(x))


# Runs that begin, end or are masked somewhere


def sigmas_of(model, steps=6):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


@torch.inference_mode()
def run(guider, sigmas, latent=None, noise=None, mask=None, sampler="euler"):
    noise = tiny.latent(2, 6, seed=3) if noise is None else noise
    latent = torch.zeros_like(noise) if latent is None else latent
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=5)


PICTURE = tiny.latent(2, 6, seed=9)
MASK = torch.linspace(0, 1, 6).expand(1, 1, 6, 6)
RUNS = {
    "whole": {},
    "partial denoise": {"skip": 3, "latent": PICTURE},
    "mask": {"latent": PICTURE, "mask": MASK.round()},
    "soft mask": {"latent": PICTURE, "mask": MASK},
    "mask, partial denoise": {"skip": 2, "latent": PICTURE, "mask": MASK},
    "inpainting with ddim's own noise": {"latent": PICTURE, "mask": MASK, "sampler": "ddim"},
    "heun": {"skip": 1, "latent": PICTURE, "mask": MASK, "sampler": "heun"},
}


def check_run(model, options, given, patch=lambda model: model, free=None):
    """`free` maps sigma to what is free to change there; where it is not given, that is the mask of the run."""
    given = dict(given)
    sigmas = sigmas_of(model)[given.pop("skip", 0) :]
    free = free or (lambda sigma: given.get("mask", 1.0))
    plain = run(guider(patch(model)), sigmas, **given)
    answer = run(guider(patch(on_model(model, options))), sigmas, **given)
    expected = run(by_hand.Guider(patch(model), CFG, options, free), sigmas, **given)
    by_hand.assert_same(answer, expected, expected - plain)


@pytest.mark.parametrize("given", RUNS.values(), ids=RUNS)
@kinds
def test_pictures_and_masks(model, options, given):
    check_run(model, options, given)


@kinds
def test_what_is_held_is_of_what_is_free(model, options):
    """Measured at the first and the fourth step, and held between."""
    check_run(tiny.as_model(by_hand.Narrowing()), replace(options, refresh=3), RUNS["soft mask"])


@pytest.mark.parametrize("strength", [1.0, 0.6])
@kinds
def test_differential_diffusion(model, options, strength):
    """The mask says at which step each place begins: free are the places that have begun (Levin and Fried,
    arXiv 2306.00950), and by a share of 1 − strength those of the soft mask.
    """
    patch = lambda model: DifferentialDiffusion.execute(model, strength).args[0]  # noqa: E731
    sampling = model.get_model_object("model_sampling")
    first, last = (sampling.timestep(sigmas_of(model)[i]) for i in (0, -1))

    def free(sigma):
        begun = (sampling.timestep(sigma[0]) - last) / (first - last) <= MASK
        return torch.lerp(MASK, begun.float(), strength)

    check_run(model, options, RUNS["soft mask"], patch, free)


RANGED = Options("elementwise", "backward", refresh=1, start_percent=0.2, end_percent=0.7)


def stages(guider, sigmas, at):
    """Two stages: the second one goes on without new noise."""
    first, second = nodes_custom_sampler.SplitSigmas.execute(sigmas, at).args
    half = run(guider, first)
    return half, run(guider, second, latent=half, noise=torch.zeros_like(half))


@pytest.mark.parametrize("prediction", ["EPS", "FLOW"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_stages_of_split_sigmas_are_one_run(prediction, at):
    """The percents are of the model's schedule, in either stage, and so the stages are the steps of the whole run."""
    model = tiny.as_model(by_hand.Narrowing(), prediction)
    sigmas = sigmas_of(model)
    plain = run(guider(model), sigmas)
    whole = run(guider(on_model(model, RANGED)), sigmas)
    expected = run(by_hand.Guider(model, CFG, RANGED), sigmas)
    by_hand.assert_same(whole, expected, expected - plain)
    _, second = stages(guider(on_model(model, RANGED)), sigmas, at)
    by_hand.assert_same(second, expected, expected - plain)


def test_a_stage_outside_the_range_is_plain(model):
    sigmas = sigmas_of(model)
    to_sigma = model.model.model_sampling.percent_to_sigma
    steps_before = sum(sigma > to_sigma(0.7) for sigma in sigmas.tolist())
    late = Options("elementwise", "backward", start_percent=0.7)
    half, end = stages(guider(on_model(model, late)), sigmas, steps_before)
    plain_half, plain_end = stages(guider(model), sigmas, steps_before)
    assert torch.equal(half, plain_half)
    assert not torch.equal(end, plain_end)


@torch.inference_mode()
def advanced(model, latent, add_noise, start, end, leftover):
    """ComfyUI's KSampler (Advanced)."""
    return nodes.KSamplerAdvanced().sample(
        model, add_noise, 5, 6, CFG, "euler", "normal", tiny.POSITIVE, tiny.NEGATIVE, latent, start, end, leftover
    )[0]


def test_two_ksamplers_are_one_run(model):
    rectified = on_model(model, RANGED)
    empty = {"samples": torch.zeros(2, tiny.CHANNELS, 6, 6)}
    half = advanced(rectified, empty, "enable", 0, 3, "enable")
    answer = advanced(rectified, half, "disable", 3, 10000, "disable")["samples"]
    noise = comfy.sample.prepare_noise(empty["samples"], 5)
    expected, plain = (
        run(one, sigmas_of(model), noise=noise) for one in (by_hand.Guider(model, CFG, RANGED), guider(model))
    )
    by_hand.assert_same(answer, expected, expected - plain)


def test_a_second_model_goes_on_with_a_rectification_of_its_own(model):
    """Base and refiner: each stage by its own rule, measured anew."""
    refiner, sigmas = tiny.as_model(by_hand.Narrowing(seed=1)), sigmas_of(model)
    rules = Options("elementwise", "backward", refresh=10), Options("jacobian", "backward", refresh=1)

    def both(first, second):
        half = run(first, sigmas[:2])
        return run(second, sigmas[1:], latent=half, noise=torch.zeros_like(half))

    answer = both(*(guider(on_model(m, rule)) for m, rule in zip((model, refiner), rules, strict=True)))
    expected = both(*(by_hand.Guider(m, CFG, rule) for m, rule in zip((model, refiner), rules, strict=True)))
    by_hand.assert_same(answer, expected, expected - both(guider(model), guider(refiner)))
