"""Guidance that changes over a run: the cfg of every evaluation, set from a schedule."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ..reg import schedules
from .hooks import Hook, any_live, leaves_denoised, passes_on
from .patches import has_own_rule
from .report.live import warn_user

COUNTED_IN = ("percent", "sigma")
SHAPES = ("constant", "linear", "cosine", "interval")
KEY = "reg schedule"
RESOLUTION = 1 << 20  # of percent
SINGLE = 1e-6  # sigmas come in single precision: an end that is a step's sigma must include it

ToSigma = Callable[[float], float]  # model_sampling.percent_to_sigma


@dataclass(frozen=True)
class GuidanceSchedule:
    """A cfg for every moment of a run. It stands in place of the guider's own cfg.

    cfg means what it means in ComfyUI, D_u + cfg (D_c − D_u), with REG and without: w = cfg − 1. (The authors' programs
    read their scale as w in REG runs and, in some plain runs, as cfg: see `reg.schedules` and the tests.)

    Raises:
        ValueError: the schedule is empty, or a value is out of range; the message names it and the remedy.
    """

    shape: str
    cfg: float
    cfg_end: float = 1.0  # linear: at the end
    power: float = 4.0  # cosine
    start_percent: float = 0.0  # interval, both ends included
    end_percent: float = 1.0
    counted_in: str = "percent"  # of the run, or how far sigma has fallen (linear and cosine)

    def __post_init__(self):
        _require(self.counted_in in COUNTED_IN, f"a schedule is counted in percent or in sigma, not {self.counted_in}")
        _require(
            self.counted_in == "percent" or self.shape in ("linear", "cosine"),
            f"a schedule of shape {self.shape} is not counted in sigma: choose percent, or the shape linear or cosine",
        )
        _require(self.shape in SHAPES, f"a schedule is one of {', '.join(SHAPES)}, not {self.shape}")
        for name in ("cfg", "cfg_end"):
            value = getattr(self, name)
            _require(0 <= value <= 100, f"{name} of a schedule must be between 0 and 100, not {value}")
        _require(0 < self.power <= 100, f"power of a schedule must be above 0 and at most 100, not {self.power}")
        for name in ("start_percent", "end_percent"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} of a schedule must be between 0 and 1, not {value}")
        _require(
            self.start_percent <= self.end_percent,
            f"the schedule's start_percent ({self.start_percent}) comes after its end_percent ({self.end_percent}): "
            "swap them",
        )
        _require(
            self.start_percent < self.end_percent,
            f"the schedule is empty, it starts and ends at {self.start_percent}: move one of its ends",
        )
        _require(
            self.cfg != 1 or (self.shape == "linear" and self.cfg_end != 1),
            "the schedule is empty, its cfg is 1 at every step: raise cfg, or disconnect it",
        )

    def rule(self, to_sigma: ToSigma) -> schedules.Schedule:
        """(percent, sigma) -> w, for a model whose percent is that sigma."""
        w = self.cfg - 1
        if self.shape == "constant":
            return schedules.constant(w)
        if self.shape == "linear":
            return schedules.linear(w, self.cfg_end - 1)
        if self.shape == "cosine":
            return schedules.cosine(w, self.power)
        low, high = to_sigma(self.end_percent), to_sigma(self.start_percent)
        return schedules.interval(w, low * (1 - SINGLE), high * (1 + SINGLE))

    def cfg_by_sigma(self, sampling) -> Callable[[float], float]:
        """sigma -> cfg, for a model of that `model_sampling`."""
        to_sigma = sampling.percent_to_sigma
        rule = self.rule(to_sigma)
        if self.counted_in == "percent":
            return lambda sigma: 1 + rule(percent_of(sigma, to_sigma), sigma)
        most, least = float(sampling.sigma_max), float(sampling.sigma_min) * (self.shape == "linear")
        return lambda sigma: 1 + rule(min(max((most - sigma) / (most - least), 0.0), 1.0), sigma)

    def curve(self, count: int = 501) -> tuple[Tensor, Tensor]:
        """Share of the run, or how far sigma has fallen, [count], and the cfg there [count]."""
        percent = torch.linspace(0, 1, count, dtype=torch.float64)
        rule = self.rule(lambda p: 1 - p)  # any decreasing sigma serves
        return percent, torch.tensor([1 + rule(p, 1 - p) for p in percent.tolist()], dtype=torch.float64)


def percent_of(sigma: float, to_sigma: ToSigma) -> float:
    """The percent at which sigma is reached, by inverting percent_to_sigma: to a millionth."""
    return bisect_left(range(RESOLUTION), -sigma, key=lambda i: -float(to_sigma(i / RESOLUTION))) / RESOLUTION


class Follower:
    """The hooks by which a run follows a schedule. Whoever starts the run keeps it; the hooks do not."""

    def __init__(self, schedule: GuidanceSchedule, sampling):
        self.cfg_by_sigma = cache(schedule.cfg_by_sigma(sampling))

    def on_step(self, executor, x, timestep, *args, **kwargs):
        """PREDICT_NOISE wrapper: the guider's cfg of this evaluation, so that cfg = 1 leaves out the unconditional pass."""
        guider = executor.class_obj
        own = guider.cfg
        guider.cfg = self.cfg_by_sigma(float(timestep.flatten()[0]))
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            guider.cfg = own

    def on_guided(self, args: dict) -> Tensor:
        """Post-CFG hook: scales the guidance of a rule that says that it used another scale (dual CFG)."""
        had = args.get("cond_scale")
        wanted = self.cfg_by_sigma(float(args["sigma"].flatten()[0]))
        if had is None or math.isclose(wanted, had) or math.isclose(had, 1):
            return args["denoised"]
        return torch.lerp(args["cond_denoised"], args["denoised"], (wanted - 1) / (had - 1))


def follow(schedule: GuidanceSchedule, guider: comfy.samplers.CFGGuider, model_options: dict) -> Follower | None:
    """Let the run that is about to begin follow the schedule. `model_options` must be the run's own copy.

    Gives what must be kept while the run lasts.
    """
    if any_live(get_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY, guider.model_options, is_model_options=True)):
        return None  # the one on the model is used
    if not _can_guide(guider):
        warn_user("REG Schedule has no guidance to change here: the guider has no negative prompt, or was set to cfg 1")
        return None
    if hasattr(guider, "cfg1"):
        warn_user("under Dual CFG, REG Schedule changes one of the two scales; the guidance by the other stays")
    follower = Follower(schedule, guider.inner_model.model_sampling)
    step, guided = Hook(follower.on_step, passes_on), Hook(follower.on_guided, leaves_denoised)
    add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, step, guider.model_options, is_model_options=True)
    hooks = model_options.get("sampler_post_cfg_function", [])
    model_options["sampler_post_cfg_function"] = [*hooks, guided]
    return follower


def _can_guide(guider: comfy.samplers.CFGGuider) -> bool:
    """Would another cfg guide? Without a negative prompt (Basic Guider) ComfyUI would scale the prediction itself, and
    a guider of two models loads the second only if its cfg is not 1."""
    if hasattr(guider, "uncond_model_patcher"):
        return guider.uncond_inner is not None
    return has_own_rule(guider) or "negative" in guider.conds


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"REG: {message}.")
