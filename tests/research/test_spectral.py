"""The spectral ratio against direct sums over the FFT, on pictures, several channels and video."""

import pytest
import torch

from pack.reg import rectification
from pack.research import spectral

SHAPES = [(3, 8, 8), (3, 4, 9, 12), (2, 4, 3, 8, 16)]


def triple(shape, seed=0):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (64, 96)])
def test_bands_cover_every_frequency_from_the_mean_up(size):
    index = spectral.bands(*size)
    assert index.shape == size
    assert (index == 0).sum() == 1 and index[0, 0] == 0
    assert index.max() == 7
    assert torch.equal(index[1:], index[1:].flip(0)) and torch.equal(index[:, 1:], index[:, 1:].flip(1))


def test_rings_hold_equal_wavenumbers():
    index = spectral.rings(8, 8)
    k = torch.fft.fftfreq(8, d=1 / 8)
    square = k[:, None] ** 2 + k**2
    for ring in index.unique():
        assert square[index == ring].unique().numel() == 1
    assert index.max() + 1 == square.unique().numel()


@pytest.mark.parametrize("shape", SHAPES)
def test_band_products_add_up_to_the_whole(shape):
    a, b, _ = triple(shape)
    index = spectral.bands(*shape[-2:])
    total = spectral.band_dot(*(torch.fft.fft2(v, norm="ortho") for v in (a, b)), index).sum(-1)
    torch.testing.assert_close(total, (a * b).flatten(1).sum(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_band_is_the_plain_ratio(shape):
    g, jc, ju = triple(shape)
    jc, ju = 0.3 * g + 0.1 * jc, 0.8 * g + 0.1 * ju
    index = torch.zeros(shape[-2:], dtype=torch.long)
    plain = rectification.ratio_factor(rectification.jacobian_ratio(g, jc, ju), 3.0) * g
    torch.testing.assert_close(spectral.ratio(g, jc, ju, 3.0, index), plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_band_by_band_it_is_the_plain_ratio_of_the_band(shape):
    g, jc, ju = triple(shape)
    jc, ju = 0.3 * g + 0.1 * jc, 0.8 * g + 0.1 * ju
    index = spectral.bands(*shape[-2:])
    whole = spectral.ratio(g, jc, ju, 3.0, index)
    for band in index.unique():
        part = lambda v: torch.fft.ifft2(torch.fft.fft2(v) * (index == band)).real  # noqa: E731, B023
        rho = rectification.jacobian_ratio(part(g), part(jc), part(ju))
        torch.testing.assert_close(part(whole), rectification.ratio_factor(rho, 3.0) * part(g))


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_where_both_models_respond_alike(shape):
    g, j, _ = triple(shape)
    index = spectral.bands(*shape[-2:])
    j = 0.5 * g + 0.01 * j
    torch.testing.assert_close(spectral.ratio(g, j, j, 7.0, index), g)


@pytest.mark.parametrize("shape", SHAPES)
def test_never_amplifies_and_never_nan(shape):
    index = spectral.bands(*shape[-2:])
    for seed in range(5):
        g, jc, ju = triple(shape, seed)
        for w in (-0.5, 0.0, 3.0, torch.full((shape[0], *[1] * (len(shape) - 1)), 7.0)):
            out = spectral.ratio(g, 10 * jc, ju, w, index)
            assert (out.flatten(1).norm(dim=1) <= g.flatten(1).norm(dim=1) * (1 + 1e-9)).all()
    zero = torch.zeros(shape)
    assert not spectral.ratio(zero, zero, zero, 3.0, index).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_invariant_to_flips_and_to_the_scale_of_the_latent(shape):
    g, jc, ju = triple(shape)
    index = spectral.bands(*shape[-2:])
    straight = spectral.ratio(g, jc, ju, 3.0, index)
    for axis in (0, -1, -2):
        torch.testing.assert_close(
            spectral.ratio(*(v.flip(axis) for v in (g, jc, ju)), 3.0, index).flip(axis), straight
        )
    torch.testing.assert_close(spectral.ratio(5 * g, 5 * jc, 5 * ju, 3.0, index), 5 * straight)
