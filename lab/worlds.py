"""Gaussian mixtures: log density, score, denoiser, Jacobian and samples in closed form, float64, batched.

The forward process is x = x0 + sigma n (alpha = 1), so that everything reads as in ComfyUI's EPS and EDM models.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class GaussianMixture:
    """Σ_k weights_k N(means_k, covariances_k) on R^d, each component written in the axes of its own covariance.

    A point is [batch, d]; in coordinates it is [batch, k, d], one row a component.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        """weights: [k]; means: [k, d]; covariances: [k, d, d]."""
        self.log_weights = (weights.double() / weights.sum()).log()
        self.variances, self.axes = torch.linalg.eigh(covariances.double())  # [k, d], [k, d, d]
        self.centres = torch.einsum("ke,ked->kd", means.double(), self.axes)

    def rotate(self, v: Tensor) -> Tensor:
        """Vectors [batch, d] in the axes of each component, [batch, k, d]."""
        return torch.einsum("ne,ked->nkd", v, self.axes)

    def combine(self, z: Tensor) -> Tensor:
        """Sum over components of vectors given in their axes: [batch, k, d] -> [batch, d]."""
        return torch.einsum("nkd,ked->ne", z, self.axes)

    def log_components(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log(weights_k N(x; means_k, covariances_k + sigma² I)), [batch, k]."""
        variance = self.variances + sigma**2
        z = self.rotate(x) - self.centres
        return self.log_weights - 0.5 * (z.square() / variance + (2 * math.pi * variance).log()).sum(-1)

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """log p(x; sigma), [batch]."""
        return self.log_components(x, sigma).logsumexp(-1)

    def responsibilities(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """p(component | x), [batch, k]."""
        return self.log_components(x, sigma).softmax(-1)

    def posterior(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """p(x0 | x) as a mixture: weights [batch, k], means in coordinates [batch, k, d], gains [k, d].

        A gain is variance / (variance + sigma²); the posterior's own variance is sigma² times the gain.
        """
        gain = self.variances / (self.variances + sigma**2)
        return self.responsibilities(x, sigma), self.centres + gain * (self.rotate(x) - self.centres), gain

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma) = E[x0 | x], [batch, d]."""
        r, means, _ = self.posterior(x, sigma)
        return self.combine(r[..., None] * means)

    def score(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """∇ log p(x; sigma), [batch, d]."""
        z = (self.rotate(x) - self.centres) / (self.variances + sigma**2)
        return -self.combine(self.responsibilities(x, sigma)[..., None] * z)

    def product(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        """J v with J = ∂D/∂x = Cov[x0 | x] / sigma², which is symmetric: [batch, d]."""
        r, means, gain = self.posterior(x, sigma)
        along = self.rotate(v)
        reach = (means * along).sum(-1)  # ⟨E[x0 | x, k], v⟩, [batch, k]
        spread = r * (reach - (r * reach).sum(-1, keepdim=True)) / sigma**2
        return self.combine(r[..., None] * gain * along + spread[..., None] * means)

    def jacobian(self, x: Tensor, sigma: float) -> Tensor:
        """∂D/∂x of points of one dimension, [batch, d, d]."""
        unit = torch.eye(x.shape[-1], dtype=x.dtype)
        return torch.stack([self.product(x, sigma, e.expand_as(x)) for e in unit], -1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points of the mixture, [n, d]."""
        return self._draw(self.log_weights.exp().expand(n, -1), self.centres, self.variances, generator)

    def sample_posterior(self, x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
        """One point of p(x0 | x) for each x, [batch, d]."""
        r, means, gain = self.posterior(x, sigma)
        return self._draw(r, means, sigma**2 * gain, generator)

    def _draw(self, weights: Tensor, centres: Tensor, variances: Tensor, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(weights, 1, generator=generator)[:, 0]
        chosen = torch.nn.functional.one_hot(k, weights.shape[-1])[..., None]
        z = centres + variances.sqrt() * torch.randn(
            len(k), 1, variances.shape[-1], generator=generator, dtype=torch.float64
        )
        return self.combine(chosen * z)


@dataclass(frozen=True)
class Pair:
    """The two models that guidance compares: p(x0|y) and what leads away from it.

    `uncond` is p(x0) for classifier-free guidance and the weak model for AutoGuidance.
    """

    cond: GaussianMixture
    uncond: GaussianMixture

    def log_reward(self, x0: Tensor, w: float) -> Tensor:
        """log R_0 = w (log p(x0|y) − log p(x0)), [batch] (the paper's section 3)."""
        return w * (self.cond.log_density(x0) - self.uncond.log_density(x0))

    def log_target(self, x0: Tensor, w: float) -> Tensor:
        """log of p(x0|y) R_0(x0), what guidance should sample, not normalised: [batch]."""
        return self.cond.log_density(x0) + self.log_reward(x0, w)


def line(weights, means, deviations) -> GaussianMixture:
    """A mixture on the line from plain numbers."""
    as_column = lambda values: torch.tensor(values, dtype=torch.float64)[:, None]  # noqa: E731
    return GaussianMixture(
        torch.tensor(weights, dtype=torch.float64), as_column(means), as_column(deviations)[..., None] ** 2
    )


def paper_line() -> Pair:
    """The paper's 1-D world (zhengqigao/REG, 1d-toy): N(0.5, 0.25²) and N(1.5, 0.25²) against N(±1, 0.5²)."""
    return Pair(line([1, 1], [0.5, 1.5], [0.25, 0.25]), line([1, 1], [-1.0, 1.0], [0.5, 0.5]))


def classes(seed: int, dimension: int = 2, count: int = 4, components: int = 2, spread: float = 1.0) -> Pair:
    """The innermost class of a random mixture against all of them, as Bayes has it: p(x0) = Σ_y p(y) p(x0|y).

    The centres of a class lie together; standard deviations lie between 0.2 and 0.5 along random axes.
    """
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    k = count * components
    middles = spread * normal(count, 1, dimension)
    middles = middles[middles.norm(dim=-1).flatten().argsort()]
    centres = middles + 0.6 * normal(count, components, dimension)
    axes = torch.linalg.qr(normal(k, dimension, dimension)).Q
    covariances = axes @ torch.diag_embed((0.2 + 0.3 * uniform(k, dimension)) ** 2) @ axes.mT
    weights, means = 0.5 + uniform(k), centres.reshape(k, dimension)
    own = slice(components)
    return Pair(
        GaussianMixture(weights[own], means[own], covariances[own]), GaussianMixture(weights, means, covariances)
    )


def broad(seed: int, dimension: int = 2) -> Pair:
    """The class of `classes(seed)` against one Gaussian with the mean and twice the covariance of all classes."""
    pair = classes(seed, dimension)
    points = pair.uncond.sample(20000, torch.Generator().manual_seed(seed))
    return Pair(pair.cond, GaussianMixture(torch.ones(1), points.mean(0)[None], 2 * points.T.cov()[None]))


def weakened(seed: int, dimension: int = 2, blur: float = 0.4) -> Pair:
    """The class of `classes(seed)` against a weak model of it, for AutoGuidance (Karras et al., arXiv 2406.02507).

    The weak model has learnt the same class less well: every component is blurred and the rarer ones are rarer.
    """
    cond = classes(seed, dimension, components=3).cond
    means = torch.einsum("kd,ked->ke", cond.centres, cond.axes)
    covariances = cond.axes @ torch.diag_embed(cond.variances + blur**2) @ cond.axes.mT
    return Pair(cond, GaussianMixture((1.5 * cond.log_weights).exp(), means, covariances))
