"""The first gradient against differences of the predictions."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.reg import estimators
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

X, SIGMA = tiny.latent() * 2, 1.7


class Strong(tiny.Network):
    def forward(self, *args, **kwargs):
        return 20 * super().forward(*args, **kwargs)


class Cut(Strong):
    """Half of what it computes keeps no gradient, without a word."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        return out / 2 + out.detach() / 2


def run(network, rectification, estimator="backward", **options):
    model = tiny.as_model(network)
    with captured_warnings() as lines:
        guided = tiny.guider(on_model(model, Options(rectification, estimator, **options)))
        answers = tiny.predict(guided, *[(X, SIGMA)] * 3)
    return answers, lines, network.evaluated


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_true_gradient_passes_at_six_evaluations(rectification):
    answers, lines, evaluated = run(tiny.Network(), rectification, verify=True)
    expected, _, without = run(tiny.Network(), rectification)
    assert lines == []
    assert all(torch.equal(a, e) for a, e in zip(answers, expected, strict=True))
    assert evaluated == without + 6 * len(X)


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_false_gradient_is_refused_once(rectification):
    answers, lines, _ = run(Cut(), rectification, verify=True)
    expected, _, _ = run(Strong(), rectification, "difference")
    assert len(lines) == 1 and "off from differences of its predictions" in lines[0]
    assert "REG goes on with estimator = difference" in lines[0]
    torch.testing.assert_close(answers[-1], expected[-1], rtol=1e-3, atol=1e-3)


def test_disagreement_is_how_much_is_missing():
    """On a linear map: with all but a part p of Jᵀv, the gap is at least that of ⟨p, Jv⟩ to |Jᵀv| |Jv|."""
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, dtype=torch.float64)
    x, v = torch.randn(2, 3, 8, dtype=torch.float64).unbind(0)
    true = v @ matrix

    def gap(product):
        return estimators.disagreement(lambda x: x @ matrix.T, x, v, product, 1e-3)

    assert gap(true) < 1e-10
    along = v @ matrix.T
    for part in (0.1, 0.5, 1.0):
        found = true - part * along
        missed = part * along.square().sum(1) / (found.norm(dim=1) * along.norm(dim=1))
        assert gap(found) > 0.999 * missed.max()
    assert gap(torch.zeros_like(true)) == 1
    assert not gap(torch.full_like(true, float("nan"))) <= 0.05
