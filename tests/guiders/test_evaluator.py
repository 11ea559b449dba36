"""Evaluations of ours are made as ComfyUI made its own: what is found out about a run's model, and what is refused."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders import run as runs
from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.guiders.state import Learned, Way
from pack.reg.rectification import Needs
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import by_hand, neighbours, tiny

X, SIGMA, CFG = tiny.latent() * 2, 1.7, 4.0
DIFFERENCES = [options for options in by_hand.EVERY_KIND if options.estimator != "backward"]


@pytest.fixture
def learned(monkeypatch):
    """What the runs of a test learned about their models."""
    found, begin = [], runs.Learned

    def note():
        found.append(begin())
        return found[-1]

    monkeypatch.setattr(runs, "Learned", note)
    return found


class Together(tiny.Network):
    """A prompt in a batch with another is not what it is alone."""

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return out + 0.3 * out[: len(X)].repeat(len(x) // len(X), 1, 1, 1) * (len(x) > len(X))


def wrapped(network):
    """A patch around the network that makes more of it, every time alike."""
    model = tiny.as_model(network)
    model.set_model_unet_function_wrapper(lambda apply, args: 1.5 * apply(args["input"], args["timestep"], **args["c"]))
    return model


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (lambda: tiny.as_model(tiny.Network()), Way(together=False, wrapped=False)),
        (lambda: wrapped(tiny.Network()), Way(together=False, wrapped=True)),
        (lambda: tiny.as_model(Together()), Way(together=True, wrapped=False)),
        (lambda: wrapped(Together()), Way(together=True, wrapped=True)),
    ],
    ids=["plain", "wrapped", "together", "wrapped, together"],
)
@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_the_way_is_the_cheapest_that_gives_what_comfyui_got(learned, model, way, options):
    """And what is measured is the Jacobian of what ComfyUI evaluates, from differences of its own predictions."""
    model = model()

    def both(x):
        seen = []

        def look(args):
            seen.extend(d.clone() for d in args["conds_out"])
            return args["conds_out"]

        watching = model.clone()
        watching.set_model_sampler_pre_cfg_function(look)
        tiny.predict(tiny.guider(watching, CFG), (x, SIGMA))
        return seen

    found = tiny.predict(tiny.guider(on_model(model, options), CFG), *[(X, SIGMA)] * 2)
    both_anyway = options.rule.needs is Needs.JVP_BOTH
    assert learned[-1].way == (way._replace(together=False) if both_anyway else way)
    expected = expected_by_differences(options, both, X)
    d_cond, d_uncond = both(X)
    for answer in found:
        by_hand.assert_same(answer, expected, (CFG - 1) * (d_cond - d_uncond), 0.02)


def expected_by_differences(options, both, x):
    """D_c + R(g), with J by central differences of the whole batch; its transpose where the reverse pass is asked for."""
    d_cond, d_uncond = both(x)
    delta = d_cond - d_uncond
    g, h = (CFG - 1) * delta, 0.02
    if options.estimator != "backward":
        conds = [lambda x, i=i: both(x)[i] for i in (0, 1)]
        return d_cond + by_hand.rectified(options, *conds, x, g, delta, 1.0, by_hand.differenced)
    columns = []
    for i in range(x.numel()):
        unit = torch.zeros(x.numel())
        unit[i] = h
        columns.append((both(x + unit.view_as(x))[0] - both(x - unit.view_as(x))[0]).flatten() / (2 * h))
    jacobian = torch.stack(columns, 1)
    if options.rectification == "elementwise":
        return d_cond + jacobian.sum(0).view_as(x) * g
    return d_cond + (g.flatten() @ jacobian).view_as(x)


@pytest.mark.parametrize("refresh", [1, 0])
def test_the_way_is_looked_for_once_a_run(learned, refresh):
    """One evaluation of one cond, whatever the number of measurements."""
    options = Options("jacobian", "difference", refresh=refresh)
    model = tiny.as_model(tiny.Network())
    measured = 8 if refresh else 4
    tiny.predict(tiny.guider(on_model(model, options), CFG), *[(X, SIGMA)] * 8)
    assert model.model.diffusion_model.evaluated == (8 * 2 + measured + 1) * len(X)
    assert len(learned) == 1 and not learned[0].draws


@pytest.mark.parametrize("size", [1e-5, 0.02])
def test_what_is_off_by_more_than_rounding_is_refused(size):
    """A patch that moves predictions by a little more at every call."""
    model, calls = tiny.as_model(tiny.Network()), []

    def wrap(apply, args):
        calls.append(1)
        return apply(args["input"], args["timestep"], **args["c"]) + size * len(calls)

    model.set_model_unet_function_wrapper(wrap)
    plain = tiny.predict(tiny.guider(model, CFG), (X, SIGMA))[0]
    calls.clear()
    with captured_warnings() as lines:
        found = tiny.predict(tiny.guider(on_model(model, Options("elementwise", "difference")), CFG), (X, SIGMA))[0]
    if size > 1e-3:
        assert len(lines) == 1 and "in a way that REG cannot repeat" in lines[0]
        assert torch.equal(found, plain)
    else:
        assert lines == [] and (found - plain).abs().max() > 1e-2


class Draws(tiny.Network):
    """Another noise in every evaluation."""

    def forward(self, x, *args, **kwargs):
        return super().forward(x, *args, **kwargs) + torch.randn(1, *x.shape[1:])


@pytest.mark.parametrize("options", DIFFERENCES, ids=by_hand.name)
def test_random_numbers_are_drawn_again(learned, options):
    """D_c with noise in it, and an R(g) as without: for the difference of two evaluations has none."""

    def rectified(kind):
        answers = []
        for guided in (
            tiny.guider(tiny.as_model(kind()), 1.0),
            tiny.guider(on_model(tiny.as_model(kind()), options), CFG),
        ):
            torch.manual_seed(0)
            answers.append(tiny.predict(guided, (X, SIGMA))[0])
        d_cond, found = answers
        return d_cond, found - d_cond

    (noisy, found), (plain, expected) = rectified(Draws), rectified(tiny.Network)
    assert [run.draws for run in learned] == [True, False]
    assert (noisy - plain).norm() > 0.1 * plain.norm()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("options", DIFFERENCES, ids=by_hand.name)
def test_a_cache_that_cannot_be_seen_spoils_no_difference(options):
    """The network has no blocks to watch, as a compiled one: a difference is taken between two evaluations of ours.

    So on the second noise level, which the cache answers, what multiplies the guidance is the network's own answer.
    """
    model, points = tiny.as_model(by_hand.Narrowing()), ((X, SIGMA), (0.9 * X, 0.9 * SIGMA))

    def second(kind, cfg):
        return tiny.predict(tiny.guider(kind, cfg), *points)[1]

    def rectified(patch):
        """g, and how much of it is left along itself."""
        d_cond, plain, found = (
            second(kind, cfg)
            for kind, cfg in ((patch(model), 1.0), (patch(model), CFG), (on_model(patch(model), options), CFG))
        )
        g = plain - d_cond
        return g, by_hand.dot(found - d_cond, g) / by_hand.dot(g, g)

    (g, left), (cached, left_of_cached) = rectified(lambda model: model), rectified(neighbours.cache_around_the_model)
    assert (g - cached).norm() > 0.05 * g.norm()  # the cache answers
    torch.testing.assert_close(left_of_cached, left, rtol=0.1, atol=0.02)


def test_fewer_blocks_than_in_a_full_pass_are_a_cache():
    """By the kind of pass: a wrapped way may have fewer than a plain one."""
    learned, network = Learned(), torch.nn.Identity()
    assert not learned.shows_blocks(network, "plain")
    assert not learned.is_partial(network, "plain", {1, 2, 3})
    assert learned.is_partial(network, "plain", {1})
    assert not learned.is_partial(network, "graph", {1})
    assert not learned.is_partial(network, "plain", {1, 2, 3, 4})
    assert learned.is_partial(network, "plain", {1, 2, 3})
    assert learned.shows_blocks(network, "plain") and not learned.shows_blocks(None, "plain")
