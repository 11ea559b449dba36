"""Distances of samples where they are known."""

import pytest
import torch

from pack.lab import measure


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("a", "b", "squared"),
    [
        (column(0), column(-1, 2), (1 + 4) / 2),
        (column(0, 3), column(0, 1, 2), 1 / 6 + 4 / 6 + 1 / 3),  # of the quantile functions, piece by piece
        (column(5, 1, 3), column(3, 5, 1), 0),
        (column(1, 2), column(1, 1, 1, 2, 2, 2), 0),
    ],
)
def test_along_a_line_it_is_the_distance_of_the_quantile_functions(a, b, squared):
    assert measure.sliced_wasserstein(a, b) == pytest.approx(squared**0.5, abs=1e-12)


@pytest.mark.parametrize("dimension", [2, 5])
def test_of_a_shift_and_of_a_scaling(dimension):
    """Along a direction θ a shift is ⟨δ, θ⟩, whose mean square is |δ|²/d; scaling moves x by (s − 1) x."""
    x = torch.randn(400, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.arange(1, dimension + 1).double()
    moved = measure.sliced_wasserstein(x, x + shift, projections=20000)
    assert moved == pytest.approx((shift.square().sum() / dimension).sqrt().item(), rel=0.02)
    scaled = measure.sliced_wasserstein(x, 3 * x, projections=20000)
    assert scaled == pytest.approx(2 * (x.square().sum(1).mean() / dimension).sqrt().item(), rel=0.02)


def test_it_is_that_of_pot():
    import ot

    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (50, 170))
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=64, seed=4)
    assert measure.sliced_wasserstein(x, y, projections=64, seed=4) == pytest.approx(expected, rel=1e-9)
