"""Reductions per sample, at any rank.

One sample at a time, so that a batch of two gives the same bits as two batches of one (a reduction over a whole batch
may sum in another order); batches of hundreds, which only the lab has, all at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MANY = 128  # samples


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample: [batch, ...], [batch, ...] -> [batch, 1, ...]."""
    return _reduced(torch.sum, a * b)


def rms(a: Tensor) -> Tensor:
    """Root mean square of each sample: [batch, ...] -> [batch, 1, ...]."""
    return _reduced(torch.mean, a.square()).sqrt()


def _reduced(reduce: Callable, values: Tensor) -> Tensor:
    """[batch, ...] -> [batch, 1, ...], ready to multiply a tensor of that rank."""
    many = len(values) > MANY
    found = reduce(values.flatten(1), 1) if many else torch.stack([reduce(sample) for sample in values])
    return found.view(-1, *[1] * (values.ndim - 1))
