"""Guidance schedules: the weight w = cfg − 1 at each moment of a run.

A schedule is a function (progress, sigma) -> w. `progress` runs from 0 at the highest noise to 1 at the clean end in
the model's own time: for models with timesteps it is 1 − t / 1000, which is what ComfyUI calls percent.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float, float], float]


def constant(w: float) -> Schedule:
    """The same weight throughout."""
    return lambda progress, sigma: w


def linear(start: float, end: float) -> Schedule:
    """From `start` at the highest noise to `end` at the clean end (Wang et al., arXiv 2404.13040).

    zhengqigao/REG counts this in sigma for EDM2, progress = (sigma_max − sigma) / (sigma_max − sigma_min). For DiT it counts in
    timesteps, and its flags are not the two ends: w = t (end − start) / (0 − 1000) + start is `start` at the *clean* end and
    2 start − end at the noisy one, t = 1000 (9.5 for start 5, end 0.5).
    """
    return lambda progress, sigma: start + (end - start) * progress


def cosine(w: float, power: float = 4.0) -> Schedule:
    """w (1 − cos(π progress^power)) / 2, from 0 to w: MDT's power-cosine (Gao et al., arXiv 2303.14389).

    zhengqigao/REG counts progress as 1 − t / 1000 for DiT, as 1 − sigma / sigma_max for EDM2. DiT's plain run of it puts the
    number in the place of cfg, not of w: one less guidance than with REG.
    """
    return lambda progress, sigma: w * (1 - math.cos(math.pi * progress**power)) / 2


def interval(w: float, sigma_low: float, sigma_high: float) -> Schedule:
    """w for sigma_low ≤ sigma ≤ sigma_high, else no guidance (Kynkäänniemi et al., arXiv 2404.07724)."""
    return lambda progress, sigma: w if sigma_low <= sigma <= sigma_high else 0.0


def exponential(w: float, decay: float) -> Schedule:
    """cfg(t) = cfg e^(−decay t), t = 1 − progress: C²FG, strongest at the clean end (Gao et al., arXiv 2603.08155)."""
    return lambda progress, sigma: (1 + w) * math.exp(-decay * (1 - progress)) - 1
