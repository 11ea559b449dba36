"""Rectifications of a guidance term: the rules, their formulas, and what they ask of the model.

Guidance moves the conditional prediction by g = D_guided − D_c. It scales marginals where it should scale the joint of
the whole chain; a rectification R(g) mends that to first order (Gao et al., ICML 2025, arXiv 2501.18865):

    D_reg = D_c + (1 − s) g + s R(g)          s = strength: 0 is the guidance as it was, 1 is R, above 1 extrapolates

    elementwise   R(g) = α Jᵀ1 ⊙ g            the paper's rule (its equation for D, and the same for epsilon)
    jacobian      R(g) = α Jᵀg                the chain rule kept whole
    ratio         R(g) = ρ / (1 + w(1 − ρ)) g ours: exact for Gaussian p(x0|y) and p(x0) where g is an eigendirection

J = ∂D_c/∂x; α multiplies the clean latent in the noisy one, x = α x0 + σ noise. Tensors are [batch, ...] of any rank.

A new rectification is a class here and an entry in RECTIFICATIONS: the nodes, the report, the lab and the benches all
read that table. The product, the exact worlds and the tests measure with the same objects; they differ in the `Step`.
"""

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from . import per_sample

if TYPE_CHECKING:
    from .profile import Profile

# How far f may be from 0, and R(g) longer than g. αJ is the posterior's variance over the noise's (Tweedie's formula): at
# most 1 where the posterior is narrower than the noise, and above 1 only between modes. The demo networks stay within
# −2 and 3; what is beyond 10 is a fault (an overflow, a kernel gone wrong), not a measurement.
LARGEST = 10.0
# How long J g may be beside g where only a ratio of two is used. At the start of a flow model α is 0, and J alone has no
# such bound: one of the demo networks has 50 there.
LONGEST = 1000.0
# What says something is above it: where α is nearly 0, at the start of a flow model, f is nearly 0 whatever follows.
LEAST = 1e-3


class Needs(Enum):
    """What a rectification asks of the model's Jacobian."""

    NOTHING = auto()
    JT_ONES = auto()  # Jᵀ1, which can be had before the guidance is known
    VJP = auto()  # Jᵀg
    JVP_BOTH = auto()  # J_c g and J_u g


class Step(Protocol):
    """A guided step, as a rectification sees it. Tensors are [batch, ...]; numbers per sample are [batch, 1, ...]."""

    x: Tensor
    sigma: Tensor  # [batch]
    alpha: Tensor  # multiplies the clean latent in x
    d_cond: Tensor
    d_uncond: Tensor
    guidance: Tensor  # g = D_guided − D_c, whatever rule made it
    mask: Tensor | None  # 1 where the latent is free to change, 0 where it is given (inpainting); None: free everywhere

    def jt_ones(self) -> Tensor:
        """Jᵀ1, [batch, ...]; Jᵀ of the mask where there is one."""

    def chain_rule(self) -> Tensor:
        """α Jᵀg, [batch, ...], of the free part of g."""

    def products(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """J_c v and J_u v, [batch, ...] each."""


class Rectification:
    """A rule: how it is measured, and what stands for the measurement until the next one.

    By default that is a factor of the guidance, `value`: a map [batch, ...] or one number a sample [batch, 1, ...].
    """

    name: str  # in options and files
    label: str  # what a person reads
    symbol: str  # of the value
    text: str  # one sentence for a tooltip: what it does and what is known of it
    colour: str  # in plots
    needs: Needs
    curve: str  # of a profile

    def measure(self, step: Step) -> tuple[Tensor, Tensor]:
        """R(g) [batch, ...] from the model, and the value that stands for it."""
        raise NotImplementedError

    def reuse(self, value: Tensor, step: Step) -> Tensor:
        """R(g) [batch, ...] from an earlier value."""
        return value * step.guidance

    def carried(self, value: Tensor, fall: Tensor) -> Tensor:
        """What stands for an earlier value where log(σ/α) has fallen by `fall` [batch, 1, ...] since: that value."""
        return value

    def from_profile(self, profile: "Profile", step: Step) -> Tensor:
        """The value that a profile has at this noise level."""
        return _shaped(profile.at(self.curve, step.sigma), step.x)

    def is_informative(self, value: Tensor) -> Tensor:
        """Whether a value says anything, a boolean tensor: one that is clamped, or next to 0, everywhere does not."""
        return ((value > LEAST) & (value < 1)).any()


class Elementwise(Rectification):
    """The paper's map f = α Jᵀ1."""

    name, label, symbol, colour = "elementwise", "REG (paper)", "f", "#0072B2"
    text = "the paper's rule, a map that damps guidance where the model does not respond to the noise"
    needs, curve = Needs.JT_ONES, "factor"

    def measure(self, step):
        factor = elementwise_factor(step.jt_ones(), step.alpha)
        return factor * step.guidance, factor

    def is_informative(self, value):
        return (value.abs() > LEAST).any()


class Jacobian(Rectification):
    """The whole chain rule α Jᵀg; its gain along the guidance stands for it."""

    name, label, symbol, colour = "jacobian", "whole Jacobian", "gain", "#009E73"
    text = "a fuller form of the paper's rule, known from small models only"
    needs, curve = Needs.VJP, "gain"

    def measure(self, step):
        rectified = trusted(step.chain_rule(), step.guidance)
        return rectified, gain(free(step, step.guidance), rectified)


class Ratio(Rectification):
    """One number a sample from how much narrower the conditional posterior is along the guidance; ρ stands for it."""

    name, label, symbol, colour = "ratio", "ratio", "ρ", "#CC79A7"
    text = "one number for each picture and step says how much guidance stays; ours, known from small models only"
    needs, curve = Needs.JVP_BOTH, "rho"

    def measure(self, step):
        g = free(step, step.guidance)
        rho = jacobian_ratio(g, *step.products(g), step.alpha)
        return self.reuse(rho, step), rho

    def reuse(self, value, step):
        return ratio_factor(value, weight_of(step)) * step.guidance

    def carried(self, value, fall):
        """ρ rises as the noise falls: its logit is moved by as much as log(σ/α) falls (docs/quality/holding.md)."""
        moved = (value.clamp(1e-6, 1 - 1e-6).logit() + fall).sigmoid()
        return torch.where((value > 0) & (value < 1) & fall.isfinite(), moved, value)

    def from_profile(self, profile, step):
        """The ρ whose f is the mean of f over samples at this step's w. f is convex in ρ, so a mean ρ would guide too little;
        samples at one standard deviation on either side have their mean and their spread."""
        rho, spread = (_shaped(profile.at(curve, step.sigma), step.x) for curve in (self.curve, "spread"))
        w = weight_of(step)
        mean_f = (ratio_factor((rho - spread).clamp(min=0), w) + ratio_factor((rho + spread).clamp(max=1), w)) / 2
        denominator = 1 + w * mean_f  # of the inverse, ρ = f (1 + w) / (1 + w f)
        inverse = mean_f * (1 + w) / torch.where(denominator > 0, denominator, 1.0)
        return torch.where((spread > 0) & (denominator > 0) & (w > -1), inverse, rho)


RECTIFICATIONS: dict[str, Rectification] = {rule.name: rule for rule in (Elementwise(), Jacobian(), Ratio())}


def named(name: str) -> Rectification:
    """The rule of a name, or of the label that people read.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    for rule in RECTIFICATIONS.values():
        if name in (rule.name, rule.label):
            return rule
    known = ", ".join(rule.label for rule in RECTIFICATIONS.values())
    raise ValueError(f"REG: rectification must be one of {known}, not {name}.")


def blend(d_cond: Tensor, guidance: Tensor, rectified: Tensor, strength: float = 1.0) -> Tensor:
    """D_c + (1 − s) g + s R(g)."""
    return d_cond + torch.lerp(guidance, rectified, strength)


def elementwise_factor(jt_ones: Tensor, alpha: Tensor | float) -> Tensor:
    """f = α Jᵀ1, the paper's map, within ±LARGEST; 1 at places where it is not a number or beyond."""
    factor = alpha * jt_ones
    return torch.where(factor.abs() <= LARGEST, factor, 1.0)  # NaN is not


def is_rounding(guidance: Tensor, d_cond: Tensor, d_uncond: Tensor) -> Tensor:
    """Is the guidance of a sample no more than the rounding of D_u + cfg (D_c − D_u) at cfg 1? [batch, 1, ...]."""
    least = 4 * torch.finfo(guidance.dtype).eps
    return per_sample.rms(guidance) <= least * (per_sample.rms(d_cond) + per_sample.rms(d_uncond))


def trusted(rectified: Tensor, guidance: Tensor) -> Tensor:
    """R(g), and g itself in samples where R(g) is not finite or more than LARGEST times as long: [batch, ...]."""
    return torch.where(per_sample.rms(rectified) <= LARGEST * per_sample.rms(guidance), rectified, guidance)


def gain(guidance: Tensor, rectified: Tensor) -> Tensor:
    """⟨R(g), g⟩ / ⟨g, g⟩ of each sample within [0, 1], [batch, 1, ...]: what is left of the guidance along itself.

    One number that stands for R between measurements; 1 where there is no guidance.
    """
    norm = per_sample.dot(guidance, guidance)
    k = per_sample.dot(rectified, guidance) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, k.clamp(0.0, 1.0), 1.0)


def weight(guidance: Tensor, d_cond: Tensor, d_uncond: Tensor) -> Tensor:
    """The w of each sample for which g is nearest to w (D_c − D_u) where it is not 0, [batch, 1, ...]: the guidance in force.

    Where it is 0, nothing is guided: DiT's guidance moves three of four channels.
    """
    delta = torch.where(guidance != 0, d_cond - d_uncond, 0.0)
    norm = per_sample.dot(delta, delta)
    return per_sample.dot(guidance, delta) / torch.where(norm > 0, norm, 1.0)


def weight_of(step: Step) -> Tensor:
    """The weight of a step's guidance where its latent is free to change."""
    return weight(*(free(step, v) for v in (step.guidance, step.d_cond, step.d_uncond)))


def jacobian_ratio(guidance: Tensor, jc_guidance: Tensor, ju_guidance: Tensor, alpha: Tensor | float = 0.0) -> Tensor:
    """ρ = ⟨g, J_c g⟩ / ⟨g, J_u g⟩ of each sample within [0, 1], [batch, 1, ...].

    How much narrower the conditional posterior is than the unconditional one along the guidance; 1 where the
    unconditional one has no width to compare with, or a product cannot be trusted: |α J g| is above LARGEST |g|, or,
    where α is near 0, |J g| above LONGEST |g|.
    """
    bound = torch.as_tensor(LARGEST / alpha if isinstance(alpha, Tensor) else LONGEST).clamp(max=LONGEST)
    longest = bound.to(guidance) * per_sample.rms(guidance)
    sound = (per_sample.rms(jc_guidance) <= longest) & (per_sample.rms(ju_guidance) <= longest)
    wide = per_sample.dot(guidance, ju_guidance)
    sound = sound & (wide > 0)
    rho = per_sample.dot(guidance, jc_guidance) / torch.where(sound, wide, 1.0)
    return torch.where(sound, rho, 1.0).clamp(0.0, 1.0)


def ratio_factor(rho: Tensor, w: Tensor | float) -> Tensor:
    """f = ρ / (1 + w (1 − ρ)), within [0, 1]: 1 at ρ = 1, and at w = −1; ρ at w = 0."""
    denominator = 1 + w * (1 - rho)
    return torch.where(denominator > 0, rho / torch.where(denominator > 0, denominator, 1.0), 1.0).clamp(0.0, 1.0)


def free(step: Step, v: Tensor) -> Tensor:
    """v [batch, ...] where the latent is free to change, 0 where it is given."""
    return v if step.mask is None else v * step.mask


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    """[batch] or [batch, channels] -> [batch, 1, ...] or [batch, channels, 1, ...], of the rank of x."""
    return values.view(*values.shape, *[1] * (x.ndim - values.ndim))
