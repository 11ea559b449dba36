"""What a rhythm is off between two measurements, on recorded steps whose numbers are known."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from types import SimpleNamespace

import torch

from pack.reg.rectification import RECTIFICATIONS
from pack.research import holding

FACTORS, SIGMAS = (0.2, 0.5, 0.9), (4.0, 2.0, 1.0)


def note(factor, sigma):
    """A step of elementwise REG whose guidance is 1 and whose map is the factor, everywhere."""
    one, value = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), factor)
    step = SimpleNamespace(guidance=one, d_cond=one, d_uncond=0 * one, mask=None)
    return holding.Recorded(sigma, float(torch.tensor(sigma).log()), step, value * one, value, True)


NOTES = [note(*pair) for pair in zip(FACTORS, SIGMAS, strict=True)]


def off(measured, carry=holding.constant):
    return holding.errors(RECTIFICATIONS["elementwise"], NOTES, measured, carry)


def test_measuring_always_is_never_off():
    assert [step[2] for step in off([0, 1, 2])] == [0, 0, 0]


def test_a_held_map_is_off_by_what_the_map_changed():
    steps = off([0])
    assert [step[2] for step in steps] == pytest.approx([0, 2 * 0.3, 2 * 0.7])  # the norm of four numbers
    assert [step[3] for step in steps] == pytest.approx([2 * 0.8, 2 * 0.5, 2 * 0.1])


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("error", (0.3 / 2 + 0.7) / (0.8 / 2 + 0.5 / 2 + 0.1)),
        ("error by sigma", (0.3 + 0.7) / (2 * 0.8 + 0.5 + 0.1)),
    ],
)
def test_the_error_is_over_cfgs(weight, expected):
    assert holding.error(off([0]), holding.WEIGHTS[weight]) == pytest.approx(expected)


def test_the_line_of_gaussians_is_exact_where_the_law_is():
    """v / (v + σ²) with v = 1 in place of the factors."""
    notes = [note(1 / (1 + sigma**2), sigma) for sigma in SIGMAS]
    found = holding.errors(RECTIFICATIONS["elementwise"], notes, [0], holding.line(2.0))
    assert [step[2] for step in found] == pytest.approx([0, 0, 0], abs=1e-6)
