"""One guided step, as the rectifications see it, and how each of them measures it, keeps it and reads it in a profile.

A new rectification is a new class here and its name in RECTIFIERS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..reg import estimators, rectification
from ..reg.profile import Profile


@dataclass
class Step:
    """What is known of a guided step, and what can be asked of the model. Tensors are [batch, ...]."""

    x: Tensor
    sigma: Tensor  # [batch]
    alpha: Tensor  # multiplies the clean latent in x, [batch, 1, ...]
    d_cond: Tensor
    d_uncond: Tensor
    guidance: Tensor  # g = D_guided − D_c, whatever rule made it
    strength: float
    relative_step: float  # of a difference, over the root mean square of x
    natural: bool  # may a difference be taken at the step the guidance itself makes?
    jt_ones: Callable[[], Tensor]  # Jᵀ1
    product: Callable[[Tensor], Tensor]  # v -> Jᵀv
    denoise_cond: Callable[[Tensor], Tensor]  # x -> D_c(x), one more conditional pass
    denoise_both: Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> D_c(x), D_u(x), one more of each


class Rectifier(Protocol):
    """How a rectification is had inside a run. What is kept stands for a measurement until the next."""

    looks_for: str  # what to look ahead for when the conds are evaluated: "ones", "graph" or "nothing"

    def measure(self, step: Step) -> tuple[Tensor, Tensor]:
        """The rectified guidance [batch, ...], from the model, and what to keep of it."""

    def reuse(self, kept: Tensor, step: Step) -> Tensor:
        """The rectified guidance [batch, ...], from what was kept."""

    def profiled(self, profile: Profile, step: Step) -> Tensor:
        """What would have been kept, from a profile."""


class Elementwise:
    """The paper's map f = α Jᵀ1."""

    looks_for = "ones"

    def measure(self, step):
        factor = rectification.elementwise_factor(step.jt_ones(), step.alpha)
        return factor * step.guidance, factor

    def reuse(self, kept, step):
        return kept * step.guidance

    def profiled(self, profile, step):
        factor = profile.at("factor", step.sigma)
        return factor.view(*factor.shape, *[1] * (step.x.ndim - 2))


class Jacobian:
    """The whole chain rule α Jᵀg; kept as its gain along the guidance."""

    looks_for = "graph"

    def measure(self, step):
        if step.natural:
            moved = step.denoise_cond(step.x + step.alpha * step.strength * step.guidance)
            rectified = (moved - step.d_cond) / step.strength
        else:
            rectified = step.alpha * step.product(step.guidance)
        return rectified, rectification.gain(step.guidance, rectified)

    def reuse(self, kept, step):
        return kept * step.guidance

    def profiled(self, profile, step):
        return profile.at("gain", step.sigma).view(-1, *[1] * (step.x.ndim - 1))


class Ratio:
    """One number per sample from how much narrower the conditional posterior is along the guidance; kept as ρ."""

    looks_for = "nothing"

    def measure(self, step):
        probe = estimators.probe(step.x, step.guidance, step.relative_step)
        cond, uncond = step.denoise_both(probe.x)
        rho = rectification.narrowing(
            step.guidance, probe.product(step.d_cond, cond), probe.product(step.d_uncond, uncond)
        )
        return self.reuse(rho, step), rho

    def reuse(self, kept, step):
        w = rectification.weight(step.guidance, step.d_cond, step.d_uncond)
        return rectification.ratio_factor(kept, w) * step.guidance

    def profiled(self, profile, step):
        return profile.at("rho", step.sigma).view(-1, *[1] * (step.x.ndim - 1))


RECTIFIERS: dict[str, Rectifier] = {"elementwise": Elementwise(), "jacobian": Jacobian(), "ratio": Ratio()}
