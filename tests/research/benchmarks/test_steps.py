"""The error of a difference against models whose Jacobian is known."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.research.benchmarks import steps
from pack.tests.guiders import tiny


class Cubic(torch.nn.Module):
    """A network of which D(x) = x − σ (a + b x + c x³), element by element."""

    dtype = torch.float32

    def __init__(self, c):
        super().__init__()
        self.c = c

    def forward(self, x, t, context=None, **kwargs):
        return 0.1 + context.mean((1, 2)).view(-1, 1, 1, 1) + 0.2 * x + self.c * x**3


def subject(c):
    return steps.Subject(
        "cubic",
        lambda dtype: tiny.as_model(Cubic(c), dtype=dtype),
        tiny.POSITIVE,
        tiny.NEGATIVE,
        tiny.latent(),
        (torch.float32,),
    )


def scaled(model, sigma):
    """What the network sees of x is x times this (EPS)."""
    return model.get_model_object("model_sampling").calculate_input(torch.tensor([sigma]), torch.ones(1, 1)).item()


@pytest.fixture
def exact():
    return steps.truth(subject(0.05), 0.5)


def derivatives(x):
    """J = ∂D/∂x and ∂²D/∂x² of the cubic, both diagonal."""
    model = subject(0.05).build(torch.float32)
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    s = scaled(model, sigma)
    return 1 - sigma * (0.2 * s + 0.15 * s**3 * x**2), -sigma * 0.3 * s**3 * x


def test_the_truth_is_the_derivative(exact):
    jacobian, _ = derivatives(exact.x)
    torch.testing.assert_close(exact.j_ones, jacobian, rtol=1e-3, atol=1e-3)
    g_j_g = (exact.guidance.square() * jacobian).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(exact.g_j_g, g_j_g, rtol=1e-3, atol=1e-3)


def test_the_error_is_half_the_curvature_times_the_step(exact):
    """(D(x + h) − D(x))/h − J = h D''/2 + …, with h the step over the root mean square of x."""
    jacobian, curvature = derivatives(exact.x)
    shift = dict(zip(steps.SHIFTS, steps.errors(subject(0.05), torch.float32, exact, 0.5), strict=False))[0.3]
    size = exact.x.square().mean((1, 2, 3), keepdim=True).sqrt()
    h = 0.3 / exact.x[0].numel() ** 0.5 * size
    expected = ((h * curvature / 2).norm() / jacobian.norm()).item()
    assert shift[0] == pytest.approx(expected, rel=0.05)


def test_a_straight_model_has_no_error():
    exact = steps.truth(subject(0.0), 0.5)
    for ones, along in steps.errors(subject(0.0), torch.float32, exact, 0.5):
        assert ones < 0.01 and along < 0.01


def test_errors_are_shown_in_percent():
    assert steps.shown((0.0312, 0.456)) == "3.1% / 46%"


def test_the_page_has_a_row_for_each_measurement_and_names_the_defaults():
    page = steps.document([["toy", "2", "float32", "50%", *["1.0% / 2.0%"] * 7]], "python3 dev.py steps")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 3
    assert "float32" in page and "python3 dev.py steps" in page


def test_what_is_asked_runs_at_the_models_own_sigma():
    seen = []
    chosen = subject(0.0)
    model = chosen.build(torch.float32)
    steps.asked(chosen, model, 0.3, lambda denoise, noise, sigma: seen.append((sigma, noise.shape)))
    expected = model.get_model_object("model_sampling").percent_to_sigma(0.3)
    assert seen == [(pytest.approx(float(expected)), tiny.latent().shape)]
