"""A run: the ways in, what costs nothing, what is kept between measurements, what happens when something fails."""

from dataclasses import replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.guiders import by_hand, networks, tiny

X, SIGMA = tiny.latent() * 2, 1.7
kinds = pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


def evaluations(model, run):
    """How many samples the network is asked for while run() runs."""
    network = model.model.diffusion_model
    before = network.evaluated
    run()
    return network.evaluated - before


@kinds
def test_nothing_to_do_costs_nothing_and_changes_no_bit(model, options):
    def same(guided, plain):
        assert torch.equal(tiny.sample(guided), tiny.sample(plain))
        assert evaluations(model, lambda: tiny.sample(guided)) == evaluations(model, lambda: tiny.sample(plain))

    kind = {"rectification": options.rectification, "estimator": options.estimator}
    same(tiny.guider(on_model(model, options), cfg=1.0), tiny.guider(model, cfg=1.0))
    same(tiny.guider(on_model(model, Options(**kind, strength=0.0))), tiny.guider(model))
    same(tiny.guider(on_model(model, Options(**kind, start_percent=0.0, end_percent=0.0))), tiny.guider(model))


def test_only_steps_within_the_range_are_rectified(model):
    """The range is ComfyUI's: from percent_to_sigma(start) down to percent_to_sigma(end), both included."""
    to_sigma = model.model.model_sampling.percent_to_sigma
    low, high = to_sigma(0.6), to_sigma(0.2)
    points = [(X, sigma) for sigma in (high * 1.01, high, low, low * 0.99)]
    ranged = Options("elementwise", "backward", start_percent=0.2, end_percent=0.6)
    answers = tiny.predict(tiny.guider(on_model(model, ranged)), *points)
    rectified = tiny.predict(tiny.guider(on_model(model, Options("elementwise", "backward"))), *points)
    plain = tiny.predict(tiny.guider(model), *points)
    assert [torch.equal(a, r) for a, r in zip(answers, rectified, strict=True)] == [False, True, True, False]
    assert [torch.equal(a, p) for a, p in zip(answers, plain, strict=True)] == [True, False, False, True]


@pytest.mark.parametrize("strength", [0.25, 2.0])
def test_strength_blends_and_extrapolates(model, strength):
    def answer(strength):
        return tiny.predict(tiny.guider(on_model(model, Options("elementwise", "backward", strength))), (X, SIGMA))[0]

    (plain,) = tiny.predict(tiny.guider(model), (X, SIGMA))
    torch.testing.assert_close(answer(strength), torch.lerp(plain, answer(1.0), strength))


@pytest.mark.parametrize(
    ("options", "passes", "first"),
    [  # of a step that measures, and more for the first: the check against ComfyUI's own prediction, and …
        (Options("elementwise", "backward"), 2, 2),  # a graph of its own (then a reverse pass: three in all)
        (Options("jacobian", "backward"), 2, 2),
        (Options("elementwise", "difference"), 3, 1 + 3),  # a probe in the batch, to be compared with one alone
        (Options("jacobian", "difference"), 3, 1),
        (Options("jacobian", "difference", step=0.01), 3, 1),
        (Options("ratio", "difference"), 4, 2),  # of both predictions
    ],
)
@pytest.mark.parametrize(("refresh", "measured"), [(1, 8), (4, 2), (0, 4)])
def test_passes(options, passes, first, refresh, measured):
    """Eight guided steps measure at each, at every fourth, or at 0, 1, 2 and 4."""
    model = tiny.as_model(by_hand.Narrowing())
    guided = tiny.guider(on_model(model, replace(options, refresh=refresh)))
    asked = evaluations(model, lambda: tiny.predict(guided, *[(X, SIGMA)] * 8))
    assert asked == (8 * 2 + measured * (passes - 2) + first) * len(X)


@kinds
@pytest.mark.parametrize("refresh", [3, 0])
def test_what_is_kept_between_measurements(options, refresh):
    """elementwise keeps its map, jacobian its gain along the guidance, ratio ρ: a run against the formulas written out.

    Of six steps, 0 and 3 are measured, or 0, 1, 2 and 4.
    """
    options, model = replace(options, refresh=refresh), tiny.as_model(by_hand.Narrowing())
    hand = by_hand.Guider(model, 4.0, options)
    expected, plain = tiny.sample(hand, steps=6), tiny.sample(tiny.guider(model), steps=6)
    assert hand.measurements == (2 if refresh else 4)
    by_hand.assert_same(tiny.sample(tiny.guider(on_model(model, options)), steps=6), expected, expected - plain)


@kinds
def test_runs_do_not_see_each_other(model, options):
    """A run leaves nothing behind: not for the next one, nor for another branch of the graph."""
    kept = Options(options.rectification, options.estimator, refresh=3)
    rectified, branch = on_model(model, kept), on_model(model, Options("elementwise", "difference", strength=0.5))
    first = tiny.sample(tiny.guider(rectified))
    other = tiny.sample(tiny.guider(branch), seed=8)
    assert torch.equal(tiny.sample(tiny.guider(rectified)), first)
    assert torch.equal(tiny.sample(tiny.guider(branch), seed=8), other)


def test_a_batch_is_as_good_as_its_samples_alone(model):
    for options in by_hand.EVERY_KIND:
        rectified = tiny.guider(on_model(model, replace(options, step=0.0)))
        together = tiny.predict(rectified, (X, SIGMA))[0]
        alone = torch.cat([tiny.predict(rectified, (x[None], SIGMA))[0] for x in X])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def everything(model):
    """The identity of all that a run could touch."""
    modules = dict(model.model.named_modules())
    tensors = [*model.model.parameters(), *model.model.buffers()]
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m.forward.__func__) for m in modules.values()]
    return (
        [(name, id(module)) for name, module in modules.items()],
        [(id(t), t.data_ptr(), t.requires_grad, t.is_inference()) for t in tensors],
        [(id(h), len(h), id(p), len(p), id(f)) for h, p, f in hooks],
        model.model_options,
        model.wrappers,
    )


@pytest.mark.parametrize("network", [tiny.Network, networks.NoGradient, networks.WritesInPlace, networks.Broken])
@kinds
def test_everything_is_as_it_was_afterwards(network, options):
    with torch.inference_mode():  # where a prompt loads its model
        model = tiny.as_model(network())
    rectified = on_model(model, options)
    before = repr(everything(model)), repr(everything(rectified))
    flags = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.overrides._get_current_function_mode()
    try:
        tiny.sample(tiny.guider(rectified))
    except KeyboardInterrupt:
        assert network is networks.Broken
    assert (repr(everything(model)), repr(everything(rectified))) == before
    assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == flags[:2]
    assert torch.overrides._get_current_function_mode() is flags[2]


def test_a_profile_stands_for_the_measurement(model):
    sigma = 10**0.5  # half way between 1 and 10 in log sigma
    (plain,), (cond,) = (tiny.predict(tiny.guider(model, cfg), (X, sigma)) for cfg in (4.0, 1.0))
    factors = {
        "elementwise": torch.tensor([0.35, 0.3, 0.25]).view(3, 1, 1),
        "jacobian": 0.35,
        "ratio": 0.4 / (1 + 3 * 0.6),
    }
    for rectification, factor in factors.items():
        options = Options(rectification, "profile", profile=tiny.profile())
        guided = tiny.guider(on_model(model, options))
        torch.testing.assert_close(
            tiny.predict(guided, (X, sigma))[0], cond + factor * (plain - cond), rtol=1e-4, atol=1e-4
        )
        assert evaluations(model, lambda guided=guided: tiny.predict(guided, (X, sigma))) == 2 * len(X)


def test_skip_below_leaves_out_the_unconditional_pass(model):
    options = Options("elementwise", "profile", skip_below=0.1, profile=tiny.profile())
    points = [(X, 10.0), (X, 1.0)]  # effect 0 × (cfg − 1), and 0.3 × 3
    guided = tiny.guider(on_model(model, options))
    assert evaluations(model, lambda: tiny.predict(guided, *points)) == (1 + 2) * len(X)
    torch.testing.assert_close(tiny.predict(guided, *points)[0], tiny.predict(tiny.guider(model, 1.0), *points)[0])
