"""Guided denoisers in exact worlds: a guidance rule (a schedule of w and a pair of models) with a rectification.

The rectifications are those of the product, the same objects (`reg.rectification`); what differs is the step they see,
whose products with the Jacobians are exact. `Guide(pair, schedule, rectification)(x, sigma)` is the guided prediction
[batch, ...], ready for any chain. A guide keeps what it measured between steps, so it serves one chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..reg import per_sample, rectification, refresh, rules, schedules
from ..reg.profile import Profile
from ..reg.rectification import RECTIFICATIONS, Rectification
from .chains import SIGMA_MAX, SIGMA_MIN
from .worlds import Pair


@dataclass
class Step:
    """A guided step as a rectification sees it (`reg.rectification.Step`); alpha = 1. Tensors are [batch, ...]."""

    pair: Pair
    x: Tensor
    level: float  # sigma
    w: float
    d_cond: Tensor
    d_uncond: Tensor
    guidance: Tensor
    natural: bool = False  # is the chain rule a prediction at the step that the guidance makes?
    mask: None = None
    alpha: float = 1.0

    @property
    def sigma(self) -> Tensor:
        return torch.full([len(self.x)], self.level, dtype=self.x.dtype)

    def jc(self, v: Tensor) -> Tensor:
        """J_c v, exactly (J is symmetric: also J_cᵀ v)."""
        return self.pair.cond.product(self.x, self.level, v)

    def ju(self, v: Tensor) -> Tensor:
        """J_u v, exactly."""
        return self.pair.uncond.product(self.x, self.level, v)

    def moved(self, v: Tensor) -> Tensor:
        """What D_c gains when x moves by v: D_c(x + v) − D_c(x)."""
        return self.pair.cond.denoise(self.x + v, self.level) - self.d_cond

    def jt_ones(self) -> Tensor:
        return self.jc(torch.ones_like(self.x))

    def chain_rule(self) -> Tensor:
        return self.moved(self.guidance) if self.natural else self.jc(self.guidance)

    def products(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.jc(v), self.ju(v)

    def rho(self) -> Tensor:
        """ρ of the guidance, [batch, 1, ...]."""
        return rectification.jacobian_ratio(self.guidance, *self.products(self.guidance))


class NoRectification(Rectification):
    """The guidance as it is."""

    name, label, symbol, colour = "none", "CFG", "f", "#D55E00"

    def measure(self, step):
        return step.guidance, torch.ones_like(step.guidance)


class ByFunction(Rectification):
    """A rule tried in the lab: a function of a step that gives R(g) and what stands for it, a factor of g or a function
    of the later step."""

    def __init__(self, function: Callable[[Step], tuple[Tensor, Tensor | Callable]]):
        self.function = function

    def measure(self, step):
        return self.function(step)

    def reuse(self, value, step):
        return value(step) if callable(value) else value * step.guidance


class ByProfile(Rectification):
    """A rule of the product whose values are read off a profile: no further evaluation."""

    def __init__(self, rule: Rectification, profile: Profile):
        self.rule, self.profile = rule, profile

    def measure(self, step):
        value = self.rule.from_profile(self.profile, step)
        return self.rule.reuse(value, step), value


def all_rules() -> dict[str, Rectification]:
    """The product's rules by name, beside no rectification, and the chain rule at its natural step, D_c(x + g)."""
    whole = RECTIFICATIONS["jacobian"]
    natural = ByFunction(lambda step: whole.measure(replace(step, natural=True)))
    return {"none": NoRectification(), **RECTIFICATIONS, "natural": natural}


def progress(sigma: float) -> float:
    """How far a run is, 0 at SIGMA_MAX to 1 at SIGMA_MIN, in log sigma: ComfyUI's percent for continuous EDM models."""
    return 1 - math.log(sigma / SIGMA_MIN) / math.log(SIGMA_MAX / SIGMA_MIN)


@dataclass
class Guide:
    """A guidance rule with its rectification; call it with x: [batch, ...] and sigma."""

    pair: Pair
    schedule: schedules.Schedule
    rectification: Rectification = field(default_factory=NoRectification)
    refresh: int = 1  # measure anew every n-th guided evaluation; 0: with doubling gaps
    _evaluations: int = field(default=0, init=False)
    _measured: int | None = field(default=None, init=False)
    _level: float = field(default=0.0, init=False)
    _value: Tensor | Callable | None = field(default=None, init=False)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        w = self.schedule(progress(sigma), sigma)
        d_cond = self.pair.cond.denoise(x, sigma)
        if w == 0:
            return d_cond
        d_uncond = self.pair.uncond.denoise(x, sigma)
        guidance = rules.cfg(d_cond, d_uncond, w)
        step = Step(self.pair, x, sigma, w, d_cond, d_uncond, guidance)
        return rectification.blend(d_cond, guidance, self._rectified(step))

    def _rectified(self, step: Step) -> Tensor:
        now, self._evaluations = self._evaluations, self._evaluations + 1
        if not refresh.is_due(now, self._measured, self.refresh):
            fall = torch.tensor(math.log(self._level / step.level), dtype=step.x.dtype)
            value = self._value if callable(self._value) else self.rectification.carried(self._value, fall)
            return self.rectification.reuse(value, step)
        self._measured, self._level = now, step.level
        rectified, self._value = self.rectification.measure(step)
        return rectified


def measure_profile(pair: Pair, sigmas: Tensor, generator: torch.Generator, samples: int = 256) -> Profile:
    """A profile of a pair, as REG Calibrate makes one of a model: means over noisy conditional samples."""
    x0 = pair.cond.sample(samples, generator)
    rows = []
    for sigma in sigmas.tolist():
        x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        d_cond, d_uncond = pair.cond.denoise(x, sigma), pair.uncond.denoise(x, sigma)
        g = d_cond - d_uncond
        step = Step(pair, x, sigma, 1.0, d_cond, d_uncond, g)
        effect = per_sample.rms(g) / per_sample.rms(d_cond).clamp(min=1e-6)
        gain, rho = rectification.gain(g, step.jc(g)), step.rho()
        rows.append([step.jt_ones().mean(), gain.mean(), rho.mean(), effect.mean(), rho.std(correction=0)])
    factor, gain, rho, effect, spread = torch.tensor(rows, dtype=sigmas.dtype).unbind(1)
    return Profile(sigmas, factor[:, None], gain, rho, effect, spread=spread)
