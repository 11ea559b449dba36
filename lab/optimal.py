"""The exact guidance ∇ log E_t with E_t(x) = E[R_0(x0) | x_t = x, y] (the paper's theorem 3.1), by independent methods.

Since ∇ p(x0|x,y) = p(x0|x,y) (x0 − D_c)/sigma², the exact prediction is the posterior mean of the reweighted data,

    D_c + sigma² ∇ log E_t = E[x0 R_0 | x, y] / E[R_0 | x, y],

which is the denoiser of the target p(x0|y) R_0(x0) itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .fields import FieldMixture
from .worlds import GaussianMixture, Pair

REACH = 9.0  # standard deviations: exp(−9²/2) is 3e-18


@dataclass(frozen=True)
class Estimate:
    """A value and how far it may be off, both [batch, d]."""

    value: Tensor
    error: Tensor


def quadrature(pair: Pair, x: Tensor, sigma: float, w: float, nodes: int = 128) -> Estimate:
    """∇ log E_t at x: [batch, d] with d ≤ 2, by the trapezoidal rule around each component of p(x0|x,y).

    The rule converges faster than any power of the spacing for such integrands. The error is what halving the number of
    nodes along each axis changes, far more than what is left, and what lies on the rim may stand for beyond it.
    """
    parts = [_quadrature(pair, part, sigma, w, nodes) for part in x.split(16)]
    fine, coarse, beyond = (torch.cat(values) for values in zip(*parts, strict=True))
    return Estimate(fine, (fine - coarse).abs() + beyond)


def _quadrature(pair: Pair, x: Tensor, sigma: float, w: float, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """∇ log E_t on all nodes, on every second one along each axis, and the share of the rim, where the nodes end."""
    cond, d = pair.cond, x.shape[-1]
    axis = torch.linspace(-REACH, REACH, nodes + 1, dtype=torch.float64)
    xi = torch.cartesian_prod(*[axis] * d).view(-1, d)  # [nodes^d, d]
    r, means, gain = cond.posterior(x, sigma)
    z = means[:, :, None] + sigma * gain.sqrt()[:, None] * xi  # [batch, k, nodes^d, d]
    x0 = torch.einsum("nkgd,ked->nkge", z, cond.axes)
    log_weight = r.log()[..., None] - xi.square().sum(-1) / 2
    log_weight = log_weight + pair.log_reward(x0.reshape(-1, d), w).view_as(log_weight)
    moves = (x0 - cond.denoise(x, sigma)[:, None, None]) / sigma**2
    every = torch.arange(nodes + 1) % 2 == 0
    second = torch.cartesian_prod(*[every] * d).view(-1, d).all(-1)
    rim = (xi.abs() == REACH).any(-1)
    return (
        _mean(log_weight, moves),
        _mean(log_weight[:, :, second], moves[:, :, second]),
        _mean(log_weight, rim[:, None] * moves.abs()),
    )


def _mean(log_weight: Tensor, values: Tensor) -> Tensor:
    """Self-normalised weighted mean over components and nodes: [n, k, g], [n, k, g, d] -> [n, d]."""
    weight = log_weight.flatten(1).softmax(-1)
    return (weight[..., None] * values.flatten(1, 2)).sum(1)


def monte_carlo(pair: Pair, x: Tensor, sigma: float, w: float, draws: int, generator: torch.Generator) -> Estimate:
    """∇ log E_t at x: [batch, ...], from posterior samples weighted with R_0; `error` is one standard error.

    The standard error is that of a ratio of means (the delta method).
    """
    x0 = pair.cond.sample_posterior(x.repeat_interleave(draws, 0), sigma, generator)
    weight = pair.log_reward(x0, w).view(len(x), draws).softmax(-1)
    moves = (x0 - pair.cond.denoise(x, sigma).repeat_interleave(draws, 0)) / sigma**2
    moves = moves.view(len(x), draws, *x.shape[1:])
    weight = weight.view(len(x), draws, *[1] * (x.ndim - 1))
    value = (weight * moves).sum(1)
    return Estimate(value, (weight * (moves - value[:, None])).square().sum(1).sqrt())


def gaussian_target(pair: Pair, w: float) -> GaussianMixture:
    """p(x0|y) R_0(x0) of two Gaussians, a Gaussian: precision (1+w) P_c − w P_u, and likewise for precision × mean.

    Raises:
        ValueError: a model is no single Gaussian, or p(x0) is so narrow that the target cannot be normalised.
    """
    if len(pair.cond.log_weights) + len(pair.uncond.log_weights) != 2:
        raise ValueError("a Gaussian target needs one Gaussian against one: use GridTarget for mixtures")
    make = _field_of if isinstance(pair.cond, FieldMixture) else _gaussian_of
    return make(pair.cond, pair.uncond, w)


def _field_of(cond: FieldMixture, uncond: FieldMixture, w: float) -> FieldMixture:
    precision = (1 + w) / cond.variances - w / uncond.variances
    _require_positive(precision)
    centre = ((1 + w) * cond.centres / cond.variances - w * uncond.centres / uncond.variances) / precision
    shape = (1, cond.n, cond.n)
    return FieldMixture(torch.ones(1), cond.combine(centre[None]), (1 / precision).view(shape))


def _gaussian_of(cond: GaussianMixture, uncond: GaussianMixture, w: float) -> GaussianMixture:
    p_c, p_u = ((m.axes[0] / m.variances[0]) @ m.axes[0].T for m in (cond, uncond))
    mean_c, mean_u = (m.axes[0] @ m.centres[0] for m in (cond, uncond))
    precision = (1 + w) * p_c - w * p_u
    _require_positive(torch.linalg.eigvalsh(precision))
    mean = torch.linalg.solve(precision, (1 + w) * p_c @ mean_c - w * p_u @ mean_u)
    return GaussianMixture(torch.ones(1), mean[None], precision.inverse()[None])


def _require_positive(precision: Tensor) -> None:
    if (precision <= 0).any():
        raise ValueError("p(x0) is narrower than w allows: the target of this guidance cannot be normalised")


class GridTarget:
    """p(x0|y) R_0(x0) / Z on a regular grid of the line or the plane: its denoiser, samples and masses.

    Noise separates over the axes, so a denoiser on n² nodes costs two matrix products: fast enough for whole chains.
    Exact to 1e-8 for sigma ≥ `spacing`, below which the kernel falls between nodes.
    """

    def __init__(self, pair: Pair, w: float, spacing: float = 0.03):
        self.spacing = spacing
        self.axes = _axes(pair.cond, spacing)
        self.points = torch.cartesian_prod(*self.axes).view(-1, len(self.axes))
        logs = torch.cat([pair.log_target(part, w) for part in self.points.split(50000)])
        self.mass = logs.softmax(0)  # of each node

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The exact guided prediction D_c + sigma² ∇ log E_t, [batch, d]."""
        kernels = [_kernel(x[:, i], axis, sigma) for i, axis in enumerate(self.axes)]
        if len(self.axes) == 1:
            weight = kernels[0] * self.mass
            return (weight @ self.axes[0] / weight.sum(-1))[:, None]
        (first, second), (rows, columns) = kernels, self.axes
        mass = self.mass.view(len(rows), len(columns))
        weight = (first @ mass) * second
        moment = ((first * rows) @ mass * second).sum(-1)
        return torch.stack([moment, weight @ columns], -1) / weight.sum(-1)[:, None]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points of the target, uniform within a cell of the grid, [n, d]."""
        cells = torch.multinomial(self.mass, n, replacement=True, generator=generator)
        jitter = torch.rand(n, len(self.axes), generator=generator, dtype=torch.float64) - 0.5
        return self.points[cells] + self.spacing * jitter

    def component_mass(self, mixture: GaussianMixture) -> Tensor:
        """How much of the target belongs to each component of a mixture, [k]."""
        return self.mass @ mixture.responsibilities(self.points)


def _axes(cond: GaussianMixture, spacing: float, reach: float = 7.0) -> list[Tensor]:
    """Nodes along each dimension that hold every component of p(x0|y) with `reach` standard deviations to spare."""
    means = torch.einsum("kd,ked->ke", cond.centres, cond.axes)
    deviations = torch.einsum("kd,ked->ke", cond.variances, cond.axes.square()).sqrt()
    low, high = (means - reach * deviations).amin(0), (means + reach * deviations).amax(0)
    return [torch.arange(a, b, spacing, dtype=torch.float64) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def _kernel(x: Tensor, axis: Tensor, sigma: float) -> Tensor:
    """N(x; axis, sigma²) up to a factor for each row, [batch, nodes]."""
    squares = (x[:, None] - axis).square()
    return torch.exp((squares.amin(-1, keepdim=True) - squares) / (2 * sigma**2))


class PoolTarget:
    """p(x0|y) R_0(x0) / Z as a weighted pool of p(x0|y): samples and masses in any dimension, no denoiser."""

    def __init__(self, pair: Pair, w: float, size: int = 3000, seed: int = 0):
        self.points = pair.cond.sample(size, torch.Generator().manual_seed(seed))
        self.mass = torch.cat([pair.log_reward(part, w) for part in self.points.split(500)]).softmax(0)

    @property
    def effective_size(self) -> float:
        """How many unweighted samples the pool is worth (Kish): 1 / Σ mass²."""
        return 1 / self.mass.square().sum().item()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points of the pool by their weights, [n, ...]."""
        return self.points[torch.multinomial(self.mass, n, replacement=True, generator=generator)]

    def component_mass(self, mixture: GaussianMixture) -> Tensor:
        """How much of the target belongs to each component of a mixture, [k]."""
        return sum(m @ mixture.responsibilities(p) for m, p in self._parts())

    def _parts(self):
        return zip(self.mass.split(500), self.points.split(500), strict=True)
