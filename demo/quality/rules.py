"""The rules that are compared: each patches a MODEL, as a user's nodes would, for CFGGuider to sample at a cfg."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_model_advanced import RescaleCFG

from ...guiders import step
from ...guiders.options import Options
from ...guiders.schedule import GuidanceSchedule, percent_of
from ...guiders.ways_in import on_model
from ...reg import schedules
from ...reg.profile import Profile

Patch = Callable[[ModelPatcher, float], ModelPatcher]  # (model, cfg) -> model

INTERVAL = (0.3, 0.7)  # percent of the run: sigma 6.6 to 0.24 of the demo models
DECAY = 1.0  # of C²FG


@dataclass(frozen=True)
class Exponential:
    """A guidance schedule that is not in the product: C²FG (arXiv 2603.08155)."""

    cfg: float

    def cfg_by_sigma(self, to_sigma):
        rule = schedules.exponential(self.cfg - 1, DECAY)
        return lambda sigma: 1 + rule(percent_of(sigma, to_sigma), sigma)


def rectified(**options) -> Patch:
    """REG with these options."""
    return lambda model, cfg: on_model(model, Options(**options))


def scheduled(schedule: Callable[[float], object]) -> Patch:
    """Guidance by a schedule of that cfg, without rectification."""
    return lambda model, cfg: on_model(model, Options(strength=0.0, schedule=schedule(cfg)))


def interval(cfg: float) -> GuidanceSchedule:
    return GuidanceSchedule("interval", cfg, start_percent=INTERVAL[0], end_percent=INTERVAL[1])


class ElementwiseOfAnother(step.Elementwise):
    """Broken on purpose: the map of the picture before in the batch."""

    def measure(self, step):
        _, factor = super().measure(step)
        return factor.roll(1, 0) * step.guidance, factor


class JacobianOfAnother(step.Jacobian):
    """Broken on purpose: the rectified guidance of the picture before in the batch."""

    def measure(self, step):
        rectified, gain = super().measure(step)
        return rectified.roll(1, 0), gain


class WrongSign(Options):
    """Broken on purpose: a strength of −1, which Options refuse; f − 1 becomes 1 − f."""

    def __post_init__(self):
        object.__setattr__(self, "strength", -1.0)


def of_another(rectification: str, rectifier: step.Rectifier) -> Patch:
    """REG with its rectification replaced by a broken one for the length of a run."""

    def within(executor, *args, **kwargs):
        with mock.patch.dict(step.RECTIFIERS, {rectification: rectifier}):
            return executor(*args, **kwargs)

    def patch(model: ModelPatcher, cfg: float) -> ModelPatcher:
        model = on_model(model, Options(rectification=rectification))
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "reg broken", within)
        return model

    return patch


def plain(model: ModelPatcher, cfg: float) -> ModelPatcher:
    return model


RULES: dict[str, Patch] = {
    "cfg": plain,
    "interval": scheduled(interval),
    "c2fg": scheduled(Exponential),
    "rescale": lambda model, cfg: RescaleCFG().patch(model, 0.7)[0],
    "apg": lambda model, cfg: APG.execute(model, 0.0, 0.0, -0.5).args[0],
    "zero": lambda model, cfg: CFGZeroStar.execute(model).args[0],
    "fresca": lambda model, cfg: FreSca.execute(model, 1.0, 1.25, 8).args[0],
    "elementwise": rectified(rectification="elementwise", estimator="backward"),
    "elementwise difference": rectified(rectification="elementwise", estimator="difference"),
    "elementwise every 4": rectified(rectification="elementwise", estimator="difference", every=4),
    "jacobian": rectified(rectification="jacobian", estimator="backward"),
    "jacobian natural": rectified(rectification="jacobian", estimator="difference"),
    "jacobian every 4": rectified(rectification="jacobian", estimator="difference", every=4),
    "ratio": rectified(rectification="ratio", estimator="difference"),
    "ratio every 4": rectified(rectification="ratio", estimator="difference", every=4),
    "broken: elementwise of another": of_another("elementwise", ElementwiseOfAnother()),
    "broken: elementwise, wrong sign": lambda model, cfg: on_model(model, WrongSign("elementwise")),
    "broken: jacobian of another": of_another("jacobian", JacobianOfAnother()),
    "broken: jacobian, wrong sign": lambda model, cfg: on_model(model, WrongSign("jacobian")),
}
PROFILED = {f"{name} profile": name for name in ("elementwise", "jacobian", "ratio")}
NAMES = ("none", *RULES, *PROFILED)


def patch(name: str, model: ModelPatcher, cfg: float, profile: Callable[[], Profile]) -> ModelPatcher:
    """The model under a rule; `profile` measures one when it is needed."""
    if name in PROFILED:
        options = Options(rectification=PROFILED[name], estimator="profile", profile=profile())
        return on_model(model, options)
    return (RULES | {"none": plain})[name](model, cfg)
