"""Products of the denoiser's Jacobian J = ∂D/∂x with a vector, from one more pass.

`Evaluation` differentiates (exact Jᵀv, one reverse pass through the forward pass that gave D); `Probe` takes a
difference (Jv, one more forward pass, no autograd). A perfect denoiser's Jacobian is symmetric, so both estimate the
same thing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import per_sample

Denoise = Callable[[Tensor], Tensor]  # x [batch, ...] -> the denoised prediction D(x), same shape

# Of a difference, by the dtype the model computes in, over the latent's own root mean square: how far to move along the
# whole direction, which curvature limits, and the least step of one value, which rounding asks for (docs/steps.md).
SHIFTS = {
    torch.float64: (0.01, 1e-6),
    torch.float32: (0.1, 1e-4),
    torch.float16: (0.5, 3e-3),
    torch.bfloat16: (1.0, 1e-2),
}
LARGEST_STEP = 0.1  # and that of networks that compute on 8 bits


def differentiable():
    """Context in which autograd records, also inside `torch.inference_mode()`, where prompts of ComfyUI run."""
    return torch.inference_mode(False)


@dataclass
class Evaluation:
    """D(x) together with the graph that can pull vectors back through it."""

    x: Tensor  # [batch, ...] leaf of the graph
    denoised: Tensor  # [batch, ...]
    owner: object = None  # of what the graph needs

    def pull_back(self, v: Tensor) -> Tensor:
        """Jᵀv, exactly, [batch, ...]; frees the graph.

        Raises:
            RuntimeError: a layer on the way has no gradient.
        """
        with differentiable(), torch.enable_grad():
            (product,) = torch.autograd.grad(self.denoised, self.x, v.clone().to(self.denoised.dtype))
        return product.detach()


def evaluate(denoise: Denoise, x: Tensor) -> Evaluation:
    """Evaluate the denoiser once, keeping the graph from x: [batch, ...]."""
    with differentiable(), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        return Evaluation(leaf, denoise(leaf))


@dataclass
class Probe:
    """Where to evaluate D once more, and what turns the difference into Jv."""

    x: Tensor  # [batch, ...] the moved latent x + h v̂, with v̂ = v / rms(v)
    scale: Tensor  # [batch, 1, ...] rms(v) / h, and 0 where v = 0

    def product(self, denoised: Tensor, denoised_moved: Tensor) -> Tensor:
        """Jv ≈ (D(x + h v̂) − D(x)) rms(v) / h, [batch, ...]."""
        return (denoised_moved - denoised) * self.scale


def relative_step(dtype: torch.dtype, size: int) -> float:
    """The step of a difference over the root mean square of x, for a latent of `size` values in each sample.

    All values move together, by √size times the step in units of the noise along that direction.
    """
    shift, least = SHIFTS.get(dtype, SHIFTS[torch.bfloat16])
    return min(max(shift / size**0.5, least), LARGEST_STEP)


def probe(x: Tensor, v: Tensor, relative_step: float) -> Probe:
    """Move x along v by `relative_step` times the root mean square of x, sample by sample: [batch, ...]."""
    h = relative_step * per_sample.rms(x)
    length = per_sample.rms(v)
    unit = v / torch.where(length > 0, length, 1.0)
    return Probe(x + h * unit, torch.where(h > 0, length / torch.where(h > 0, h, 1.0), 0.0))


def disagreement(denoise: Denoise, x: Tensor, v: Tensor, product: Tensor, relative_step: float) -> float:
    """How far (Jᵀv)ᵀu is from vᵀ(Ju), for `product` = Jᵀv and Ju by central differences: 0 for a true gradient.

    Relative to |Jᵀv| |u|; the worst over samples and over two directions that a missing part of the gradient is seen
    in, u = Jv and u = Jᵀv. Six evaluations.
    """

    def along(u: Tensor) -> Tensor:
        ahead, behind = probe(x, u, relative_step), probe(x, -u, relative_step)
        return ahead.product(denoise(behind.x), denoise(ahead.x)) / 2

    def gap(u: Tensor) -> Tensor:
        length = per_sample.rms(product) * per_sample.rms(u) * u[0].numel()
        off = (per_sample.dot(product, u) - per_sample.dot(v, along(u))).abs()
        return torch.where(length == 0, off.sign(), off / length)

    return float(torch.stack([gap(along(v)), gap(product)]).max())
