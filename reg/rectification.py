"""Rectifications of a guidance term.

Guidance moves the conditional prediction by g = D_guided − D_c. It scales marginals where it should scale the joint of
the whole chain; a rectification R(g) mends that to first order (Gao et al., ICML 2025, arXiv 2501.18865):

    D_reg = D_c + (1 − s) g + s R(g)          s = strength: 0 is the guidance as it was, 1 is R, above 1 extrapolates

    elementwise   R(g) = α Jᵀ1 ⊙ g            the paper's rule (its equation for D, and the same for epsilon)
    jacobian      R(g) = α Jᵀg                the chain rule kept whole
    ratio         R(g) = ρ / (1 + w(1 − ρ)) g ours: exact where p(x0|y) and p(x0) are Gaussian

J = ∂D_c/∂x; α multiplies the clean latent in the noisy one, x = α x0 + σ noise. Tensors are [batch, ...] of any rank.
"""

import torch
from torch import Tensor

from . import per_sample


def blend(d_cond: Tensor, guidance: Tensor, rectified: Tensor, strength: float = 1.0) -> Tensor:
    """D_c + (1 − s) g + s R(g)."""
    return d_cond + torch.lerp(guidance, rectified, strength)


def elementwise_factor(jt_ones: Tensor, alpha: Tensor | float) -> Tensor:
    """f = α Jᵀ1, the paper's map: 1 as sigma goes to 0, 0 as it grows."""
    return alpha * jt_ones


def gain(guidance: Tensor, rectified: Tensor) -> Tensor:
    """⟨R(g), g⟩ / ⟨g, g⟩ of each sample within [0, 1], [batch, 1, ...]: what is left of the guidance along itself.

    One number that stands for R between refreshes; 1 where there is no guidance.
    """
    norm = per_sample.dot(guidance, guidance)
    k = per_sample.dot(rectified, guidance) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, k.clamp(0.0, 1.0), 1.0)


def weight(guidance: Tensor, d_cond: Tensor, d_uncond: Tensor) -> Tensor:
    """The w of each sample for which g is nearest to w (D_c − D_u), [batch, 1, ...]: the guidance actually in force."""
    delta = d_cond - d_uncond
    norm = per_sample.dot(delta, delta)
    return per_sample.dot(guidance, delta) / torch.where(norm > 0, norm, 1.0)


def narrowing(guidance: Tensor, jc_guidance: Tensor, ju_guidance: Tensor) -> Tensor:
    """ρ = ⟨g, J_c g⟩ / ⟨g, J_u g⟩ of each sample within [0, 1], [batch, 1, ...].

    How much narrower the conditional posterior is than the unconditional one along the guidance; 1 where the
    unconditional one has no width to compare with.
    """
    wide = per_sample.dot(guidance, ju_guidance)
    rho = per_sample.dot(guidance, jc_guidance) / torch.where(wide > 0, wide, 1.0)
    return torch.where(wide > 0, rho, 1.0).nan_to_num(1.0).clamp(0.0, 1.0)


def ratio_factor(rho: Tensor, w: Tensor | float) -> Tensor:
    """f = ρ / (1 + w (1 − ρ)), within [0, 1]: 1 at ρ = 1, and at w = −1; ρ at w = 0."""
    denominator = 1 + w * (1 - rho)
    return torch.where(denominator > 0, rho / torch.where(denominator > 0, denominator, 1.0), 1.0).clamp(0.0, 1.0)
