"""ComfyUI's guiders with REG: each against its own rule and the formula, written out by hand."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler as nodes
from comfy_extras import nodes_perpneg, nodes_video_model

from pack.guiders.attach import RectifiedSampler, on_model
from pack.tests.guiders import by_hand, tiny

X, SIGMA = tiny.latent(batch=3) * 2, 1.7
TEXTS = {"positive": tiny.POSITIVE, "negative": tiny.NEGATIVE, "middle": tiny.MIDDLE, "empty": tiny.prompt(4)}
CFG = 4.0

kinds = pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)


@pytest.fixture
def model():
    return tiny.as_model(by_hand.Narrowing())


@pytest.fixture
def other():
    return tiny.as_model(by_hand.Narrowing(seed=1))


def at_sigma(model, name, sigma=SIGMA):
    """x -> D(x) under one of TEXTS."""
    denoised = by_hand.prediction(model, TEXTS[name])
    return lambda x: denoised(x, torch.full([len(x)], sigma))


def answers(guider, x=X, sigma=SIGMA, **options):
    """Two guided predictions of one run: in the second a guider is known."""
    return tiny.predict(guider, (x, sigma), (x, sigma), **options)


def check(guider, expected, guidance):
    for answer in answers(guider):
        by_hand.assert_same(answer, expected, guidance)


def cfg(scale):
    return lambda d_cond, d_uncond: d_uncond + scale * (d_cond - d_uncond)


@kinds
def test_cfg_guider(model, options):
    guider = nodes.CFGGuider.execute(on_model(model, options), tiny.POSITIVE, tiny.NEGATIVE, CFG).args[0]
    conditional, unconditional = at_sigma(model, "positive"), at_sigma(model, "negative")
    expected = by_hand.step(options, conditional, unconditional, cfg(CFG), X, 1.0)
    check(guider, expected, (CFG - 1) * (conditional(X) - unconditional(X)))


@kinds
def test_basic_guider_has_nothing_to_rectify(model, options):
    def sampled(model, wrap=lambda sampler: sampler):
        return tiny.sample(nodes.BasicGuider.execute(model, tiny.POSITIVE).args[0], wrap=wrap)

    plain = sampled(model)
    assert torch.equal(sampled(on_model(model, options)), plain)
    assert torch.equal(sampled(model, lambda sampler: RectifiedSampler(sampler, options)), plain)


@kinds
@pytest.mark.parametrize("style", ["nested", "regular"])
@pytest.mark.parametrize("cfg2", [2.0, 1.0])
def test_dual_cfg_is_rectified_whole(model, options, style, cfg2):
    """All that leads from cond1's prediction to the guider's is guidance: from the negative, and from cond2.

    regular: D = D_n + cfg2 (D_2 − D_n) + cfg1 (D_1 − D_2); nested: D = D_n + cfg2 (D_2 + cfg1 (D_1 − D_2) − D_n).
    The ratio compares with the negative; without one (regular at cfg2 = 1) with cond2.
    """
    guider = nodes.DualCFGGuider.execute(
        on_model(model, options), tiny.POSITIVE, tiny.MIDDLE, tiny.NEGATIVE, 3.0, cfg2, style
    ).args[0]
    positive, middle, negative = (at_sigma(model, name) for name in ("positive", "middle", "negative"))
    away = middle if style == "regular" and cfg2 == 1 else negative

    def guided(d_cond, d_away):
        text = middle(X) + 3.0 * (d_cond - middle(X))
        if style == "nested":
            return negative(X) + cfg2 * (text - negative(X))
        return negative(X) + cfg2 * (middle(X) - negative(X)) + 3.0 * (d_cond - middle(X))

    expected = by_hand.step(options, positive, away, guided, X, 1.0)
    check(guider, expected, guided(positive(X), away(X)) - positive(X))


@kinds
def test_dual_model_guider(model, other, options):
    """The negative is the other model's, and so is its Jacobian."""
    if not hasattr(nodes, "DualModelGuider"):
        pytest.skip("this ComfyUI does not have it yet")
    guider = nodes.DualModelGuider.execute(on_model(model, options), tiny.POSITIVE, CFG, other, tiny.NEGATIVE).args[0]
    conditional, unconditional = at_sigma(model, "positive"), at_sigma(other, "negative")
    expected = by_hand.step(options, conditional, unconditional, cfg(CFG), X, 1.0)
    check(guider, expected, (CFG - 1) * (conditional(X) - unconditional(X)))


def perpendicular(d_cond, d_negative, d_empty, cfg, negative_scale):
    """Perp-Neg's rule (Armandpour et al., arXiv 2304.04968), as ComfyUI takes it over the whole batch."""
    positive, negative = d_cond - d_empty, d_negative - d_empty
    along = (negative * positive).sum() / positive.square().sum()
    return d_empty + cfg * (positive - negative_scale * (negative - along * positive))


@kinds
@pytest.mark.parametrize("negative_scale", [0.8, 0.0])
def test_perp_neg_guider_is_compared_with_the_empty_prompt(model, options, negative_scale):
    """Also without a negative: there guidance comes from the empty prompt alone."""
    guider = nodes_perpneg.PerpNegGuider.execute(
        on_model(model, options), tiny.POSITIVE, tiny.NEGATIVE, TEXTS["empty"], CFG, negative_scale
    ).args[0]
    positive, negative, empty = (at_sigma(model, name) for name in ("positive", "negative", "empty"))

    def guided(d_cond, d_empty):
        return perpendicular(d_cond, negative(X), d_empty, CFG, negative_scale)

    expected = by_hand.step(options, positive, empty, guided, X, 1.0)
    check(guider, expected, guided(positive(X), empty(X)) - positive(X))


@kinds
def test_perp_neg_node(model, options):
    """The older node, which asks for the empty prompt from within the guidance rule."""
    patched = nodes_perpneg.PerpNeg.execute(model, TEXTS["empty"], 0.8).args[0]
    positive, negative, empty = (at_sigma(model, name) for name in ("positive", "negative", "empty"))

    def guided(d_cond, d_negative):
        return perpendicular(d_cond, d_negative, empty(X), CFG, 0.8)

    expected = by_hand.step(options, positive, negative, guided, X, 1.0)
    check(tiny.guider(on_model(patched, options), CFG), expected, guided(positive(X), negative(X)) - positive(X))


VIDEO = [
    (nodes_video_model.VideoLinearCFGGuidance, [1.5, 2.75, 4.0]),
    (nodes_video_model.VideoTriangleCFGGuidance, [1.5, 4.0, 1.5]),
]


@kinds
@pytest.mark.parametrize(("node", "scales"), VIDEO, ids=["linear", "triangle"])
def test_video_guidance_has_a_scale_for_each_frame(model, options, node, scales):
    """The frames are the batch."""
    (patched,) = node().patch(model, 1.5)
    conditional, unconditional = at_sigma(model, "positive"), at_sigma(model, "negative")
    scales = torch.tensor(scales).view(3, 1, 1, 1)
    expected = by_hand.step(options, conditional, unconditional, cfg(scales), X, 1.0)
    check(tiny.guider(on_model(patched, options), CFG), expected, (scales - 1) * (conditional(X) - unconditional(X)))


def guiders(model):
    dual = nodes.DualCFGGuider.execute
    return {
        "cfg": nodes.CFGGuider.execute(model, tiny.POSITIVE, tiny.NEGATIVE, CFG),
        "nested": dual(model, tiny.POSITIVE, tiny.MIDDLE, tiny.NEGATIVE, 3.0, 2.0, "nested"),
        "regular": dual(model, tiny.POSITIVE, tiny.MIDDLE, tiny.NEGATIVE, 3.0, 2.0, "regular"),
        "perp_neg": nodes_perpneg.PerpNegGuider.execute(model, tiny.POSITIVE, tiny.NEGATIVE, TEXTS["empty"], CFG, 0.8),
    }


@pytest.mark.parametrize("name", ["cfg", "nested", "regular", "perp_neg"])
@kinds
def test_patches_that_go_by_the_place_of_a_cond_find_it_where_it_was(model, options, name):
    """IP-Adapter looks up its pictures by `cond_or_uncond`: also in extra evaluations a prompt keeps its number."""
    model, places = on_model(model, options), {}

    def look(executor, *args, **kwargs):
        transformer_options = args[5]
        for uuid, place in zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True):
            places.setdefault(uuid, []).append(place)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    answers(guiders(model)[name].args[0])
    assert all(len(set(places[uuid])) == 1 for uuid in places)
    assert sorted(set(places[uuid]).pop() for uuid in places) == list(range(len(places)))


@kinds
def test_cfg_override_to_one_leaves_only_its_steps_alone(model, options):
    if not hasattr(nodes, "CFGOverride"):
        pytest.skip("this ComfyUI does not have it yet")
    to_sigma = model.model.model_sampling.percent_to_sigma
    inside, outside = to_sigma(0.2), to_sigma(0.6)
    overridden = nodes.CFGOverride.execute(on_model(model, options), 1.0, 0.0, 0.4).args[0]
    first, second = tiny.predict(tiny.guider(overridden, CFG), (X, inside), (X, outside))
    torch.testing.assert_close(first, at_sigma(model, "positive", inside)(X), rtol=1e-5, atol=1e-5)
    conditional, unconditional = (at_sigma(model, name, outside) for name in ("positive", "negative"))
    expected = by_hand.step(options, conditional, unconditional, cfg(CFG), X, 1.0)
    by_hand.assert_same(second, expected, (CFG - 1) * (conditional(X) - unconditional(X)))
