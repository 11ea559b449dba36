"""A guided step of a run, as the rectifications see it (`reg.rectification.Step`)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reg.rectification import free
from .estimators import Estimator
from .evaluator import Evaluator
from .state import StepState

if TYPE_CHECKING:
    from .run import Run


@dataclass
class GuidedStep:
    """What is known of a guided step, and what can be asked of the model. Tensors are [batch, ...]."""

    x: Tensor
    sigma: Tensor  # [batch]
    alpha: Tensor  # multiplies the clean latent in x, [batch, 1, ...]
    d_cond: Tensor
    d_uncond: Tensor
    guidance: Tensor  # g = D_guided − D_c, whatever rule made it
    mask: Tensor | None
    strength: float
    evaluator: Evaluator
    estimator: Estimator
    state: StepState

    @classmethod
    def of(cls, run: "Run", evaluator: Evaluator, state: StepState, denoised: Tensor) -> "GuidedStep":
        """The step of a run, for the guidance that made `denoised`."""
        here = evaluator.evaluated
        scale = alpha(run.sampling, here.sigma, here.x)
        d_cond, d_uncond, mask = evaluator.d_cond, state.d_uncond, state.mask
        guidance, strength = denoised - d_cond, run.options.strength
        known = (here.x, here.sigma, scale, d_cond, d_uncond, guidance, mask, strength)
        return cls(*known, evaluator, run.estimator, state)

    @property
    def noise(self) -> Tensor:
        """log(σ/α), [batch, 1, ...]; infinite at the start of a flow model."""
        return (self.sigma.view_as(self.alpha) / self.alpha).log()

    def jt_ones(self) -> Tensor:
        """Jᵀ1, or Jᵀ of the mask."""
        if self.state.jt_ones is None:
            return self.estimator.vjp(self.evaluator, self.state, self.state.ones())
        return self.state.jt_ones

    def chain_rule(self) -> Tensor:
        """α Jᵀg of the free part of g."""
        return self.estimator.chain_rule(self.evaluator, self.state, self.alpha, free(self, self.guidance))

    def products(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """J_c v and J_u v."""
        return self.estimator.products(self.evaluator, self.state, v)


def alpha(sampling, sigma: Tensor, x: Tensor) -> Tensor:
    """What multiplies the clean latent in x at sigma [batch], by the model's own `noise_scaling`: [batch, 1, ...]."""
    ones = torch.ones([len(sigma), *[1] * (x.ndim - 1)], device=x.device, dtype=x.dtype)
    return sampling.noise_scaling(sigma, torch.zeros_like(ones), ones)
