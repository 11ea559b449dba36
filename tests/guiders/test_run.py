"""A run: the ways in, what costs nothing, what is kept between measurements, what happens when something fails."""

import logging
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.options import Options
from pack.nodes.guidance import REGGuider
from pack.reg.profile import Profile
from pack.tests.guiders import by_hand, tiny

X, SIGMA = tiny.latent() * 2, 1.7
EVERY_KIND = [
    Options(rectification, estimator, refresh=1)
    for rectification, estimator in (
        ("elementwise", "backward"),
        ("elementwise", "difference"),
        ("jacobian", "backward"),
        ("jacobian", "difference"),
        ("ratio", "difference"),
    )
]
kinds = pytest.mark.parametrize("options", EVERY_KIND, ids=lambda o: f"{o.rectification}-{o.estimator}")


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
def test_three_ways_in_give_the_same_latents(model, options):
    with torch.inference_mode():
        node = REGGuider.execute(
            model,
            tiny.POSITIVE,
            tiny.NEGATIVE,
            4.0,
            rectification=options.rectification,
            estimator=options.estimator,
            every=options.refresh,
        )
    by_model = tiny.sample(tiny.guider(on_model(model, options)))
    by_guider = tiny.sample(node.args[0])
    by_sampler = tiny.sample(tiny.guider(model), wrap=lambda sampler: RectifiedSampler(sampler, options))
    torch.testing.assert_close(by_guider, by_model)
    torch.testing.assert_close(by_sampler, by_model)
    assert (by_model - tiny.sample(tiny.guider(model))).abs().max() > 1e-3


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
        (Options("ratio", "difference"), 4, 1),
    ],
)
@pytest.mark.parametrize(("refresh", "measured"), [(1, 8), (4, 2), (0, 4)])
def test_passes(options, passes, first, refresh, measured):
    """Eight guided steps measure at each, at every fourth, or at 0, 1, 2 and 4."""
    model = tiny.as_model(by_hand.Narrowing())
    guided = tiny.guider(on_model(model, replace(options, refresh=refresh)))
    asked = evaluations(model, lambda: tiny.predict(guided, *[(X, SIGMA)] * 8))
    assert asked == (8 * 2 + measured * (passes - 2) + first) * len(X)


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
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
    for options in EVERY_KIND:
        rectified = tiny.guider(on_model(model, options))
        together = tiny.predict(rectified, (X, SIGMA))[0]
        alone = torch.cat([tiny.predict(rectified, (x[None], SIGMA))[0] for x in X])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


class NoGradient(tiny.Network):
    """Cuts its output off: D would have a gradient all the same, through its own x."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs).detach()


class UnderNoGrad(tiny.Network):
    """As experts of some models are."""

    def forward(self, x, t, context=None, **kwargs):
        with torch.no_grad():
            h = self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class MovesItself(tiny.Network):
    """Moves a layer to where it is, as HunyuanVideo 1.5 does in its forward."""

    def forward(self, x, *args, **kwargs):
        self.text.to(x.device)
        return super().forward(x, *args, **kwargs)


class NoBatchOfThree(tiny.Network):
    def forward(self, x, *args, **kwargs):
        if len(x) > 2 * len(X):
            raise RuntimeError("a batch is a pair")
        return super().forward(x, *args, **kwargs)


class SamplesSeeEachOther(tiny.Network):
    """What is third in a batch is not what it would be alone."""

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return torch.cat([out[: 2 * len(X)], 3 * out[2 * len(X) :]]) if len(x) > 2 * len(X) else out


@pytest.mark.parametrize("checkpoint", ["off", "always"])
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_part_under_no_grad_is_in_the_gradient(model, rectification, checkpoint):
    options = Options(rectification, "backward", checkpoint=checkpoint)
    answer, expected = (
        tiny.predict(tiny.guider(on_model(m, options)), (X, SIGMA))[0] for m in (tiny.as_model(UnderNoGrad()), model)
    )
    torch.testing.assert_close(answer, expected)


@kinds
def test_a_model_that_moves_itself_is_as_good_afterwards(model, options):
    with torch.inference_mode():
        moving = tiny.as_model(MovesItself())
    for m in (moving, model):
        tiny.sample(tiny.guider(on_model(m, options)))
    assert all(weight.is_inference() for weight in moving.model.parameters())
    assert torch.equal(tiny.sample(tiny.guider(moving)), tiny.sample(tiny.guider(model)))


@pytest.mark.parametrize("network", [NoBatchOfThree, SamplesSeeEachOther])
def test_a_probe_that_cannot_be_in_the_batch_is_taken_alone(model, network):
    options = Options("elementwise", "difference")
    points = [(X, SIGMA), (X * 0.9, SIGMA * 0.9)]
    answers = tiny.predict(tiny.guider(on_model(tiny.as_model(network()), options)), *points)
    for answer, expected in zip(answers, tiny.predict(tiny.guider(on_model(model, options)), *points), strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


class OutOfMemory(tiny.Network):
    def forward(self, x, *args, **kwargs):
        if x.requires_grad:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, *args, **kwargs)


@pytest.mark.parametrize(("network", "reason"), [(NoGradient, "does not require grad"), (OutOfMemory, "out of memory")])
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_without_a_gradient_it_says_so_once_and_takes_the_difference(network, reason, rectification, caplog):
    model = tiny.as_model(network())
    with caplog.at_level(logging.WARNING):
        fallen_back = tiny.sample(tiny.guider(on_model(model, Options(rectification, "auto"))))
    lines = [r.getMessage() for r in caplog.records if "REG" in r.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0] and "difference" in lines[0]
    expected = tiny.sample(tiny.guider(on_model(model, Options(rectification, "difference"))))
    torch.testing.assert_close(fallen_back, expected)


class WritesInPlace(tiny.Network):
    """Same function, but it writes into what autograd saved."""

    def forward(self, x, t, context=None, **kwargs):
        h = torch.tanh(
            self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        )
        out = self.last(h)
        h.zero_()
        return out


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_model_that_writes_into_saved_tensors_still_has_a_gradient(model, rectification, caplog):
    options = Options(rectification, "backward")
    points = [(X, SIGMA), (X * 0.9, SIGMA * 0.9)]
    with caplog.at_level(logging.WARNING):
        answers = tiny.predict(tiny.guider(on_model(tiny.as_model(WritesInPlace()), options)), *points)
    assert not [r for r in caplog.records if "REG" in r.getMessage()]
    for answer, expected in zip(answers, tiny.predict(tiny.guider(on_model(model, options)), *points), strict=True):
        torch.testing.assert_close(answer, expected)


class Broken(tiny.Network):
    """Fails like an interrupt, late in a run."""

    def forward(self, *args, **kwargs):
        if self.evaluated > 10:
            raise KeyboardInterrupt
        return super().forward(*args, **kwargs)


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


@pytest.mark.parametrize("network", [tiny.Network, NoGradient, WritesInPlace, Broken])
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
        assert network is Broken
    assert (repr(everything(model)), repr(everything(rectified))) == before
    assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == flags[:2]
    assert torch.overrides._get_current_function_mode() is flags[2]


def test_weights_of_inference_mode_have_the_same_gradient(model):
    with torch.inference_mode():
        inside = tiny.as_model(tiny.Network())
    assert next(inside.model.parameters()).is_inference()
    for rectification in ("elementwise", "jacobian"):
        options = Options(rectification, "backward")
        answer, expected = (tiny.predict(tiny.guider(on_model(m, options)), (X, SIGMA))[0] for m in (inside, model))
        assert torch.equal(answer, expected)


def profile(**about):
    return Profile(
        sigmas=torch.tensor([0.1, 1.0, 10.0]),
        factor=torch.tensor([[1.0, 0.9, 0.8], [0.6, 0.5, 0.4], [0.1, 0.1, 0.1]]),
        gain=torch.tensor([1.0, 0.6, 0.1]),
        rho=torch.tensor([0.9, 0.5, 0.3]),
        effect=torch.tensor([0.5, 0.3, 0.0]),
        about={"prediction": "EPS", "channels": "3"} | about,
    )


def test_a_profile_stands_for_the_measurement(model):
    sigma = 10**0.5  # half way between 1 and 10 in log sigma
    (plain,), (cond,) = (tiny.predict(tiny.guider(model, cfg), (X, sigma)) for cfg in (4.0, 1.0))
    factors = {
        "elementwise": torch.tensor([0.35, 0.3, 0.25]).view(3, 1, 1),
        "jacobian": 0.35,
        "ratio": 0.4 / (1 + 3 * 0.6),
    }
    for rectification, factor in factors.items():
        options = Options(rectification, "profile", profile=profile())
        guided = tiny.guider(on_model(model, options))
        torch.testing.assert_close(
            tiny.predict(guided, (X, sigma))[0], cond + factor * (plain - cond), rtol=1e-4, atol=1e-4
        )
        assert evaluations(model, lambda guided=guided: tiny.predict(guided, (X, sigma))) == 2 * len(X)


def test_skip_below_leaves_out_the_unconditional_pass(model):
    options = Options("elementwise", "profile", skip_below=0.1, profile=profile())
    points = [(X, 10.0), (X, 1.0)]  # effect 0 × (cfg − 1), and 0.3 × 3
    guided = tiny.guider(on_model(model, options))
    assert evaluations(model, lambda: tiny.predict(guided, *points)) == (1 + 2) * len(X)
    torch.testing.assert_close(tiny.predict(guided, *points)[0], tiny.predict(tiny.guider(model, 1.0), *points)[0])


def test_a_profile_of_another_model_is_refused_before_sampling(model):
    for about, words in (({"prediction": "FLOW"}, "prediction FLOW"), ({"channels": "16"}, "channels 16")):
        options = Options("elementwise", "profile", profile=profile(**about))
        sentence = f"REG: .*{words}.*REG Calibrate"
        with pytest.raises(ValueError, match=sentence):
            on_model(model, options)
        with pytest.raises(ValueError, match=sentence):  # here it is the sampler that meets the model
            tiny.sample(tiny.guider(model), wrap=partial(RectifiedSampler, options=options))
    assert model.model.diffusion_model.evaluated == 0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"strength": float("nan")}, "strength"),
        ({"strength": 5.0}, "strength"),
        ({"start_percent": 0.6, "end_percent": 0.2}, "start_percent .0.6. comes after end_percent .0.2.: swap"),
        ({"end_percent": float("inf")}, "end_percent"),
        ({"refresh": -1}, "refresh"),
        ({"rectification": "none"}, "rectification"),
        ({"estimator": "profile"}, "connect"),
        ({"skip_below": 0.1}, "connect"),
    ],
)
def test_bad_options_are_named(bad, words):
    with pytest.raises(ValueError, match=f"REG: .*{words}"):
        Options(**bad)


def test_a_latent_of_another_model_is_refused_before_sampling(model):
    x = torch.randn(1, 5, 4, 4)
    network = model.model.diffusion_model
    with pytest.raises(ValueError, match="REG: the latent has 5 channels and this model takes 3"):
        tiny.predict(tiny.guider(on_model(model, Options())), (x, SIGMA))
    assert network.evaluated == 0


def test_what_has_no_denoiser_is_refused():
    with pytest.raises(ValueError, match="REG: this model has no denoiser"):
        on_model(object(), Options())
