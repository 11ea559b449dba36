"""Jacobian products against the whole matrix."""

import pytest
import torch

from pack.reg import estimators, per_sample

SHAPES = [(2, 5), (2, 3, 4), (2, 3, 4, 4), (1, 2, 2, 3, 3)]
every_rank = pytest.mark.parametrize("shape", SHAPES, ids=str)


def network(shape):
    """A smooth function of each sample with a full, unsymmetric Jacobian."""
    n = torch.Size(shape[1:]).numel()
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / n**0.5
    return lambda x: (torch.tanh(x.flatten(1) @ a) + x.flatten(1)).view(x.shape)


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def matrix(denoise, x):
    """[batch, n, n]"""
    one = lambda v: denoise(v.view(1, *x.shape[1:])).flatten()  # noqa: E731
    return torch.stack([torch.autograd.functional.jacobian(one, sample.flatten()) for sample in x])


@every_rank
def test_pull_back_is_the_transposed_product(shape):
    denoise, x, v = network(shape), draw(shape, 2), draw(shape, 3)
    expected = torch.einsum("bij,bi->bj", matrix(denoise, x), v.flatten(1)).view(shape)
    evaluation = estimators.evaluate(denoise, x)
    torch.testing.assert_close(evaluation.denoised, denoise(x))
    torch.testing.assert_close(evaluation.pull_back(v), expected)


@every_rank
def test_probe_is_the_forward_product(shape):
    denoise, x, v = network(shape), draw(shape, 2), 7 * draw(shape, 3)
    expected = torch.einsum("bij,bj->bi", matrix(denoise, x), v.flatten(1)).view(shape)
    probe = estimators.probe(x, v, 1e-6)
    torch.testing.assert_close(probe.product(denoise(x), denoise(probe.x)), expected, rtol=1e-4, atol=1e-4)


@every_rank
def test_the_step_is_relative_to_the_latent(shape):
    x, v = draw(shape, 2), draw(shape, 3)
    moved = estimators.probe(x, v, 0.1).x - x
    torch.testing.assert_close(per_sample.rms(moved), 0.1 * per_sample.rms(x))


def test_no_direction_and_no_latent_give_no_product():
    x, v = draw((2, 3), 1), torch.zeros(2, 3, dtype=torch.float64)
    for probe in (estimators.probe(x, v, 0.1), estimators.probe(v, x, 0.1)):
        assert probe.x.isfinite().all()
        assert torch.equal(probe.product(x, x + 1), v)


@every_rank
def test_a_batch_of_two_is_two_singles_bit_for_bit(shape):
    x, v = draw((2, *shape[1:]), 2, torch.float32), draw((2, *shape[1:]), 3, torch.float32)
    together = estimators.probe(x, v, 0.1)
    for i in range(2):
        alone = estimators.probe(x[i : i + 1], v[i : i + 1], 0.1)
        assert torch.equal(together.x[i : i + 1], alone.x) and torch.equal(together.scale[i : i + 1], alone.scale)


def test_gradients_are_recorded_in_inference_mode():
    shape = (2, 3, 4)
    denoise, x, v = network(shape), draw(shape, 2), draw(shape, 3)
    expected = estimators.evaluate(denoise, x).pull_back(v)
    with torch.inference_mode():
        product = estimators.evaluate(denoise, x.clone()).pull_back(v.clone())
    torch.testing.assert_close(product, expected)
