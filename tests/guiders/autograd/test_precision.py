"""Every precision: the gradient is as good as the model's own numbers, the difference as its step allows."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.nodes.guidance import REGModel
from pack.tests.families import FAMILIES
from pack.tests.families.measure import Guided, captured_warnings
from pack.tests.families.sampling import euler
from pack.tests.guiders import precisions, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PRECISIONS = {  # family, precision -> largest error of Jᵀg, of J1 by a difference (docs/steps.md)
    ("SD15", "float16"): (0.01, 0.1),
    ("SD15", "bfloat16"): (0.07, 0.3),  # by the processor: 0.03 to 0.053
    ("SD15", "fp8"): (0.5, 0.5),
    ("SD3", "float16"): (0.01, 0.1),
    ("SD3", "bfloat16"): (0.05, 0.3),
    ("Flux", "fp8"): (0.25, 0.25),
    ("Flux", "fp8 fast"): (0.25, 0.5),
    ("Flux", "scaled fp8"): (0.1, 0.1),
    ("Flux", "scaled fp8 fast"): (0.12, 0.3),
    ("Flux", "int8"): (0.04, 0.15),
    ("Flux", "nvfp4"): (0.3, 0.3),
    ("Flux", "mxfp8"): (0.1, 0.1),
}


@pytest.fixture(scope="module")
def exact():
    """In float32, by family: R(g) of backward jacobian, and of a small difference along 1."""
    known = {}

    def of(name):
        if name not in known:
            model = FAMILIES[name].build()
            guided = Guided.of(FAMILIES[name], model)
            known[name] = (
                guided,
                rectified(guided, name, model, "backward"),
                rectified(guided, name, model, "difference"),
            )
        return known[name]

    return of


def rectified(guided, name, model, estimator):
    rectification = {"backward": "jacobian", "difference": "elementwise"}[estimator]
    return guided.rectified(FAMILIES[name], model, estimator=estimator, rectification=rectification)


def error(found, true):
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_precision(name, precision, exact):
    guided, jacobian, elementwise = exact(name)
    model = precisions.build(FAMILIES[name], precision)
    own = Guided.of(FAMILIES[name], model)
    with captured_warnings() as lines:
        by_gradient = rectified(own, name, model, "backward")
        by_difference = rectified(own, name, model, "difference")
    assert lines == []
    largest, by_step = PRECISIONS[name, precision]
    noise = error(own.guidance, guided.guidance)
    assert error(by_gradient, jacobian) < min(largest, 2.5 * noise + 1e-3)
    assert error(by_difference, elementwise) < by_step


@pytest.mark.parametrize("precision", ["float16", "fp8 fast", "scaled fp8 fast", "int8"])
def test_the_prediction_is_the_models_own(precision):
    """Down to its kernel: at strength 0+ a run with a gradient is a run without."""
    family = FAMILIES["Flux"]
    model = precisions.build(family, precision)
    nearly = REGModel.execute(model, estimator="backward", strength=1e-6).args[0]
    plain, guided = euler(family, model, 2), euler(family, nearly, 2)
    assert error(guided, plain) < 2e-3


class NoSlope(tiny.Network):
    """Finite everywhere, and its gradient is 0 · ∞ in half of the pixels."""

    def forward(self, x, t, context=None, **kwargs):
        half = torch.zeros_like(x)
        half[..., ::2] = 1.0
        return super().forward(x, t, context) + ((1 - half) + half * (x * 0).abs()).sqrt()


@pytest.mark.parametrize("refresh", [1, 2])
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian", "ratio"])
def test_no_nan_where_the_prediction_has_none(rectification, refresh):
    model = tiny.as_model(NoSlope())
    options = Options(rectification, "backward", refresh=refresh)
    points = [(tiny.latent() * 2, 1.7), (tiny.latent(seed=5), 0.9)]
    plain = tiny.predict(tiny.guider(model), *points)
    answers = tiny.predict(tiny.guider(on_model(model, options)), *points)
    assert all(answer.isfinite().all() for answer in [*plain, *answers])
    if rectification == "elementwise":
        for answer, guidance in zip(answers, plain, strict=True):
            torch.testing.assert_close(answer[..., ::2], guidance[..., ::2])
            assert (answer - guidance)[..., 1::2].abs().max() > 1e-3
