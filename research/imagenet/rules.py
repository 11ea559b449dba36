"""How the authors' programs guide (github.com/zhengqigao/REG): their rules, and what they mean by a scale.

A rule gives the cfg of every noise level. Their scale is w in all rectified runs, D_c + w R(D_c − D_u), and the cfg in some
of the plain ones, D_u + cfg (D_c − D_u); DiT counts time in timesteps, EDM2 in sigma.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from ...guiders.attach import on_model
from ...guiders.autoguidance import AutoGuider
from ...guiders.options import Options

SHAPES = {"original": 0, "intervalt": 2, "linear": 1, "cosine": 1, "autog": 0}  # and how many numbers each takes
SIGMAS = (0.002, 80.0)  # of EDM2
TIMESTEPS = 1000  # of DiT


@dataclass(frozen=True)
class Rule:
    """A rule, as in "cosine 1.5" or "reg_intervalt 0.28 2.9": reg_ rectifies it, the numbers are the authors' cfg-param.

    Raises:
        ValueError: there is no such rule, or it takes other numbers.
    """

    shape: str
    rectified: bool = False
    numbers: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Rule":
        name, *numbers = text.split()
        shape = name.removeprefix("reg_")
        try:
            values = tuple(float(number) for number in numbers)
        except ValueError:
            values = (math.nan,)
        if shape not in SHAPES or len(values) != SHAPES[shape] or not all(map(math.isfinite, values)):
            known = ", ".join(f"{known} (with {count} numbers)" if count else known for known, count in SHAPES.items())
            raise ValueError(f'REG: "{text}" is no rule: they are {known}, each also with reg_ before it.')
        return cls(shape, name.startswith("reg_"), values)

    def __str__(self) -> str:
        return " ".join(["reg_" * self.rectified + self.shape, *(f"{number:g}" for number in self.numbers)])

    @property
    def guides_by_a_weaker_model(self) -> bool:
        return self.shape == "autog"

    def cfg(self, system: str, scale: float) -> Callable[[float], float]:
        """The cfg at each timestep (DiT) or sigma (EDM2) of a run at the authors' scale."""
        return (self._of_dit if system == "dit" else self._of_edm2)(scale)

    def _of_dit(self, scale: float) -> Callable[[float], float]:
        if self.shape == "intervalt":
            low, high = self.numbers
            return lambda t: 1 + scale if low <= t <= high else 1.0
        if self.shape == "linear":
            k = (self.numbers[0] - scale) / (0 - TIMESTEPS)
            return lambda t: 1 + t * k + scale
        if self.shape == "cosine":  # without REG it is MDT's, in which the scale is a cfg
            return lambda t: self.rectified + _cosine(1 - t / TIMESTEPS, self.numbers[0]) * scale
        return lambda t: 1 + scale

    def _of_edm2(self, scale: float) -> Callable[[float], float]:
        sigma_min, sigma_max = SIGMAS
        if self.shape == "intervalt":
            low, high = sorted(self.numbers)
            return lambda sigma: self.rectified + scale if low <= sigma <= high else 1.0
        if self.shape == "linear":
            k = (scale - self.numbers[0]) / (sigma_max - sigma_min)
            return lambda sigma: 1 + k * (sigma - sigma_max) + scale
        if self.shape == "cosine":
            return lambda sigma: 1 + _cosine(1 - sigma / sigma_max, self.numbers[0]) * scale
        return lambda sigma: self.rectified + scale


@dataclass(frozen=True)
class Schedule:
    """A rule as a guidance schedule of the pack's options."""

    rule: Rule
    system: str
    scale: float
    moment: Callable[[float], float]  # sigma -> what the rule counts in

    def cfg_by_sigma(self, sampling) -> Callable[[float], float]:
        cfg = self.rule.cfg(self.system, self.scale)
        return lambda sigma: float(cfg(self.moment(sigma)))


def system_of(model: ModelPatcher) -> str:
    """Which of the two a MODEL is: "dit" or "edm2"."""
    return type(model.model.diffusion_model).__name__.lower()


def guider(
    rule: Rule, scale: float, model: ModelPatcher, positive: list, negative: list, away: ModelPatcher | None = None
) -> comfy.samplers.CFGGuider:
    """A guider that samples by the rule at the authors' scale.

    Args:
        away: the network that guidance moves away from, where it is not the model itself without a class: the weaker one of
            AutoGuidance, or EDM2's unconditional one, since EDM2's own does not know an empty class.

    Raises:
        ValueError: AutoGuidance needs such a network, and there is none.
    """
    system = system_of(model)
    schedule = Schedule(rule, system, scale, moment(model, system))
    options = {"rectification": "elementwise", "estimator": "backward", "refresh": 1, "strength": float(rule.rectified)}
    model = on_model(model, Options(**options, schedule=schedule))
    if rule.guides_by_a_weaker_model and away is None:
        raise ValueError(
            f'REG: the rule "{rule}" needs the weaker model that it guides away from: name it with --weak.'
        )
    if away is None:
        made = comfy.samplers.CFGGuider(model)
        made.set_conds(positive, negative)
    else:
        made = AutoGuider(model, away)
        made.set_conds(positive)
    return made


def moment(model: ModelPatcher, system: str) -> Callable[[float], float]:
    """sigma -> what the authors' rules for the model count in."""
    if system == "edm2":
        return lambda sigma: sigma
    sigmas = model.get_model_object("model_sampling").sigmas.double()
    return lambda sigma: int((sigmas - sigma).abs().argmin())


def _cosine(progress: float, power: float) -> float:
    """(1 − cos(π progress^power)) / 2."""
    return (1 - math.cos(math.pi * progress**power)) / 2
