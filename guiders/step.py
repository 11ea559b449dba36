"""One guided step, as the rectifications see it, and how each of them measures it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reg import rectification


@dataclass
class Step:
    """What is known of a guided step, and what can be asked of the model. Tensors are [batch, ...]."""

    x: Tensor
    alpha: Tensor  # multiplies the clean latent in x, [batch, 1, ...]
    d_cond: Tensor
    guidance: Tensor  # g = D_guided − D_c, whatever rule made it
    strength: float
    natural: bool  # may a difference be taken at the step the guidance itself makes?
    jt_ones: Callable[[], Tensor]  # Jᵀ1
    product: Callable[[Tensor], Tensor]  # v -> Jᵀv
    denoise_cond: Callable[[Tensor], Tensor]  # x -> D_c(x), one more conditional pass


class Elementwise:
    """The paper's map f = α Jᵀ1, kept as it is until it is measured anew."""

    looks_for = "ones"

    @staticmethod
    def measure(step: Step) -> tuple[Tensor, Tensor]:
        """The rectified guidance [batch, ...], and what stands for it until the next measurement."""
        factor = rectification.elementwise_factor(step.jt_ones(), step.alpha)
        return factor * step.guidance, factor


class Jacobian:
    """The whole chain rule α Jᵀg; between measurements its gain along the guidance."""

    looks_for = "graph"

    @staticmethod
    def measure(step: Step) -> tuple[Tensor, Tensor]:
        """The rectified guidance [batch, ...], and what stands for it until the next measurement."""
        if step.natural:
            moved = step.denoise_cond(step.x + step.alpha * step.strength * step.guidance)
            rectified = (moved - step.d_cond) / step.strength
        else:
            rectified = step.alpha * step.product(step.guidance)
        return rectified, rectification.gain(step.guidance, rectified)


RECTIFIERS = {"elementwise": Elementwise, "jacobian": Jacobian}
