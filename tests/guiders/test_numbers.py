"""No number that an extra pass can give makes a picture worse than without REG."""

from itertools import product

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.reg import rectification
from pack.reg.rectification import Needs
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

POINTS = [(tiny.latent() * 2 * s, 1.7 * s) for s in (1.0, 0.9)]
ABSURD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e20, 3e38]
KINDS = [
    Options("elementwise", "backward", refresh=1),
    Options("elementwise", "difference", refresh=1),
    Options("jacobian", "backward", refresh=1),
    Options("jacobian", "difference", refresh=1),
    Options("ratio", refresh=1),
]


class Absurd(tiny.Network):
    """Every prediction at a moved latent, and every gradient, is absurd: at one place, in one sample, or all over.

    The point's own predictions are right: they are known by their input.
    """

    value, where = 0.0, "all"

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        if x.requires_grad:
            out.register_hook(self.spoil)
        own = torch.cat([p / (1 + s**2) ** 0.5 for p, s in POINTS])
        moved = [not any(torch.allclose(sample, point) for point in own) for sample in x.detach()]
        return torch.stack([self.spoil(one[None])[0] if m else one for one, m in zip(out, moved, strict=True)])

    def spoil(self, values):
        values = values.clone()
        if self.where == "one place":
            values[0, 0, 0, 0] = self.value
        elif self.where == "one sample":
            values[:1] = self.value
        else:
            values[:] = self.value
        return values


def model(value, where):
    network = Absurd()
    network.value, network.where = value, where
    return tiny.as_model(network)


@pytest.mark.parametrize("where", ["one place", "one sample", "all"])
@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o.rectification}-{o.estimator}")
def test_absurd_numbers_leave_the_guidance_as_it_was(options, where):
    plain = tiny.predict(tiny.guider(tiny.as_model(tiny.Network())), *POINTS)
    conditional = tiny.predict(tiny.guider(tiny.as_model(tiny.Network()), cfg=1.0), *POINTS)
    for value in ABSURD:
        found = tiny.predict(tiny.guider(on_model(model(value, where), options)), *POINTS)
        for answer, guided, cond in zip(found, plain, conditional, strict=True):
            assert answer.isfinite().all()
            if where == "all":
                torch.testing.assert_close(answer, guided, rtol=1e-5, atol=1e-5)
            moved, guidance = (answer - cond).flatten(1).norm(dim=1), (guided - cond).flatten(1).norm(dim=1)
            assert (moved <= rectification.LARGEST * guidance * 1.001).all()


@pytest.mark.parametrize("value", ABSURD)
def test_one_absurd_product_of_two_gives_no_factor(value):
    """ρ is 1, whichever of the two it is, however large the part of it."""
    g = torch.ones(2, 8)
    for c, u in product((torch.full_like(g, 0.5), torch.full_like(g, value)), repeat=2):
        if c[0, 0] == 0.5 == u[0, 0]:
            continue
        for alpha in (0.0, torch.ones(2, 1)):
            assert torch.equal(rectification.jacobian_ratio(g, c, u, alpha), torch.ones(2, 1))


def test_the_bound_of_a_product_follows_alpha():
    """|α J g| is at most LARGEST |g|; where α is 0, |J g| at most LONGEST |g|."""
    g, most = torch.ones(1, 8), rectification.LARGEST
    for alpha, allowed in ((1.0, most), (0.5, 2 * most), (1e-6, rectification.LONGEST), (0.0, rectification.LONGEST)):
        for scale, rho in ((0.99, 0.5 / (0.99 * allowed)), (1.01, 1.0)):
            found = rectification.jacobian_ratio(g, g / 2, scale * allowed * g, torch.tensor([[alpha]]))
            torch.testing.assert_close(found, torch.full_like(found, rho))


class Nan(tiny.Network):
    """Predicts NaN for one of the prompts, or for both."""

    spoiled = ()

    def forward(self, x, t, context=None, **kwargs):
        spoiled = [any(torch.allclose(one, text[0][0]) for text in self.spoiled) for one in context]
        out = super().forward(x, t, context, **kwargs)
        return torch.where(torch.tensor(spoiled).view(-1, 1, 1, 1), torch.nan, out)


@pytest.mark.parametrize("spoiled", [[tiny.POSITIVE], [tiny.NEGATIVE], [tiny.POSITIVE, tiny.NEGATIVE]])
@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o.rectification}-{o.estimator}")
def test_predictions_of_nan_are_called_so(options, spoiled):
    network = Nan()
    network.spoiled = spoiled
    with captured_warnings() as lines:
        found = tiny.predict(tiny.guider(on_model(tiny.as_model(network), options)), *POINTS)
    assert len(lines) == 1 and "predicts NaN or infinite values" in lines[0]
    assert not found[0].isfinite().any()  # as without REG


class RunsOut(tiny.Network):
    """Has memory for guidance, and after `enough` samples for nothing more: plain guidance asks for 4 at a time."""

    enough = 0

    def forward(self, x, *args, **kwargs):
        plain = len(x) == 4 and not x.requires_grad
        if self.evaluated >= self.enough and not plain:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, *args, **kwargs)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o.rectification}-{o.estimator}")
@pytest.mark.parametrize("enough", range(4, 32, 2))
def test_memory_that_runs_out_in_any_extra_pass_ends_no_run(options, enough):
    """It goes on without the pass, and says so once: that differences are taken, or that the guidance stays."""
    points = [(POINTS[0][0] * s, 1.7 * s) for s in (1.0, 0.9, 0.8, 0.7)]
    network = RunsOut()
    network.enough = enough
    with captured_warnings() as lines:
        found = tiny.predict(tiny.guider(on_model(tiny.as_model(network), options)), *points)
    assert sum("the guidance stays" in line and "memory ran out" in line for line in lines) <= 1
    assert sum("estimator = difference" in line and "out of memory" in line for line in lines) <= 1
    assert len(lines) <= 2
    if enough == 4 and options.rule.needs is not Needs.JVP_BOTH:  # which asks for no more at a time than plain guidance
        plain = tiny.predict(tiny.guider(tiny.as_model(tiny.Network())), *points)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
