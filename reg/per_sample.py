"""Reductions per sample, at any rank.

One sample at a time, so that a batch of two gives the same bits as two batches of one (a reduction over a whole batch
may sum in another order).
"""

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample: [batch, ...], [batch, ...] -> [batch, 1, ...]."""
    return _spread(torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]), a.ndim)


def rms(a: Tensor) -> Tensor:
    """Root mean square of each sample: [batch, ...] -> [batch, 1, ...]."""
    return _spread(torch.stack([x.square().mean().sqrt() for x in a]), a.ndim)


def _spread(values: Tensor, ndim: int) -> Tensor:
    """[batch] -> [batch, 1, ...], ready to multiply a tensor of that rank."""
    return values.view(-1, *[1] * (ndim - 1))
