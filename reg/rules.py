"""The guidance rule: how far, and away from what, the conditional prediction is moved.

It gives the guidance term g = D_guided − D_c, [batch, ...]; w = cfg − 1, so that w = 0 is no guidance.
"""

from torch import Tensor


def cfg(d_cond: Tensor, d_uncond: Tensor, w: Tensor | float) -> Tensor:
    """Classifier-free guidance, g = w (D_c − D_u) (Ho and Salimans, arXiv 2207.12598, equation 6).

    With a weaker model of the same condition in place of D_u it is AutoGuidance (Karras et al., arXiv 2406.02507).
    """
    return w * (d_cond - d_uncond)
