"""The rules that are compared: each patches a MODEL, as a user's nodes would, for a guider to sample at a cfg."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_model_advanced import RescaleCFG
from torch.nn.functional import cosine_similarity

from ...guiders.attach import on_model
from ...guiders.autoguidance import AutoGuider
from ...guiders.options import Options
from ...guiders.schedule import GuidanceSchedule, percent_of
from ...reg import schedules
from ...reg.profile import Profile
from ...reg.rectification import RECTIFICATIONS, Elementwise, Jacobian, Rectification
from ...reg.refresh import DOUBLING
from ..spectral import SpectralRatio
from . import peers

Patch = Callable[[ModelPatcher, float], ModelPatcher]  # (model, cfg) -> model

INTERVALS = [(a, b) for a in (0.0, 0.1, 0.2, 0.3) for b in (0.5, 0.7)]  # percent of the run
BEST_INTERVAL, BEST_FOR_RATIO = (0.2, 0.7), (0.2, 0.7)  # searched with other seeds than those of the tables
DECAY = 1.0  # of C²FG
ALIGNED = 0.991  # cosine at which Adaptive Guidance stops guiding


@dataclass(frozen=True)
class Exponential:
    """A guidance schedule that is not in the product: C²FG (arXiv 2603.08155)."""

    cfg: float

    def cfg_by_sigma(self, sampling):
        rule = schedules.exponential(self.cfg - 1, DECAY)
        return lambda sigma: 1 + rule(percent_of(sigma, sampling.percent_to_sigma), sigma)


@dataclass(frozen=True)
class Base:
    """Guidance that REG can be laid on: another pack's node, or a schedule by cfg."""

    node: Patch = lambda model, cfg: model
    schedule: Callable[[float], object] = lambda cfg: None

    def under(self, **options) -> Patch:
        """This guidance with REG of these options upon it."""
        return lambda model, cfg: on_model(self.node(model, cfg), Options(schedule=self.schedule(cfg), **options))


def rectified(**options) -> Patch:
    """CFG under REG with these options."""
    return Base().under(**options)


def scheduled(schedule: Callable[[float], object]) -> Patch:
    """Guidance by a schedule of that cfg, without rectification."""
    return Base(schedule=schedule).under(strength=0.0)


def interval(start: float, end: float, **options) -> Patch:
    """CFG within these percents of the run (arXiv 2404.07724), rectified with these options or not at all."""
    return Base(schedule=lambda cfg: within(start, end, cfg)).under(**options or {"strength": 0.0})


def within(start: float, end: float, cfg: float) -> GuidanceSchedule:
    return GuidanceSchedule("interval", cfg, start_percent=start, end_percent=end)


def on(base: str, rule: str) -> str:
    """The name of REG by a rule on other guidance."""
    return f"{base} + {rule}"


def named(rule: str, ends: tuple[float, float]) -> str:
    """The name of a rule within an interval."""
    return f"{rule} {ends[0]:g} to {ends[1]:g}"


class Adaptive:
    """A guidance schedule that is not in the product: CFG until the two noises point the same way (arXiv 2312.12487)."""

    def __init__(self, cfg: float):
        self.cfg = cfg

    def cfg_by_sigma(self, sampling):
        self.aligned = False  # a run begins
        return lambda sigma: 1.0 if self.aligned else self.cfg

    def watch(self, args: dict):
        cond, uncond = (args["input"] - args[name] for name in ("cond_denoised", "uncond_denoised"))
        self.aligned |= cosine_similarity(cond.flatten(1), uncond.flatten(1)).mean().item() > ALIGNED
        return args["denoised"]


def adaptive(model: ModelPatcher, cfg: float) -> ModelPatcher:
    schedule = Adaptive(cfg)
    model = on_model(model, Options(strength=0.0, schedule=schedule))
    model.set_model_sampler_post_cfg_function(schedule.watch)
    return model


class ElementwiseOfAnother(Elementwise):
    """Broken on purpose: the map of the picture before in the batch."""

    def measure(self, step):
        _, factor = super().measure(step)
        return factor.roll(1, 0) * step.guidance, factor


class JacobianOfAnother(Jacobian):
    """Broken on purpose: the rectified guidance of the picture before in the batch."""

    def measure(self, step):
        rectified, gain = super().measure(step)
        return rectified.roll(1, 0), gain


class WrongSign(Options):
    """Broken on purpose: a strength of −1, which Options refuse; f − 1 becomes 1 − f."""

    def __post_init__(self):
        object.__setattr__(self, "strength", -1.0)


def replaced(rule: Rectification, **options) -> Patch:
    """REG with a rule that is not the product's, or in the place of one, for the length of a run."""
    known = mock.patch.dict(RECTIFICATIONS, {rule.name: rule})

    def within(executor, *args, **kwargs):
        with known:
            return executor(*args, **kwargs)

    def patch(model: ModelPatcher, cfg: float) -> ModelPatcher:
        with known:
            model = on_model(model, Options(rule.name, **options))
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "reg replaced", within)
        return model

    return patch


def plain(model: ModelPatcher, cfg: float) -> ModelPatcher:
    return model


RATIO = {"rectification": "ratio", "estimator": "difference", "refresh": 1}
BACKWARD = {"estimator": "backward", "refresh": 1}
BASES = {  # linear and cosine: their mean over the run, or their end, is about that of the cfg they are named by
    "cfg": Base(),
    named("interval", BEST_INTERVAL): Base(schedule=lambda cfg: within(*BEST_INTERVAL, cfg)),
    "c2fg": Base(schedule=Exponential),
    "linear": Base(schedule=lambda cfg: GuidanceSchedule("linear", 1.0, 2 * cfg - 1)),
    "cosine": Base(schedule=lambda cfg: GuidanceSchedule("cosine", 2 * cfg - 1)),
    "apg": Base(lambda model, cfg: APG.execute(model, 0.0, 0.0, -0.5).args[0]),
    "zero": Base(lambda model, cfg: CFGZeroStar.execute(model).args[0]),
}
DEFAULT = {"rectification": "elementwise", "refresh": DOUBLING}  # the product's
LAID_ON = {"elementwise": DEFAULT, "ratio": DEFAULT | {"rectification": "ratio", "estimator": "difference"}}
STACKED = {
    on(base, rule): guidance.under(**options) for base, guidance in BASES.items() for rule, options in LAID_ON.items()
}
RULES: dict[str, Patch] = {
    "cfg": plain,
    **{named("interval", ends): interval(*ends) for ends in INTERVALS},
    **{named("ratio in", ends): interval(*ends, **RATIO) for ends in INTERVALS},
    "c2fg": scheduled(BASES["c2fg"].schedule),
    "adaptive": adaptive,
    "rescale": lambda model, cfg: RescaleCFG().patch(model, 0.7)[0],
    "apg": BASES["apg"].node,
    "zero": BASES["zero"].node,
    "linear": scheduled(BASES["linear"].schedule),
    "cosine": scheduled(BASES["cosine"].schedule),
    "gibbs-like": peers.gibbs_like,
    "rectified-cfg++": peers.rectified_cfg,
    "characteristic": peers.characteristic,
    **STACKED,
    "fresca": lambda model, cfg: FreSca.execute(model, 1.0, 1.25, 8).args[0],
    "elementwise": rectified(rectification="elementwise", **BACKWARD),
    "elementwise difference": rectified(rectification="elementwise", estimator="difference", refresh=1),
    "elementwise every 4": rectified(rectification="elementwise", estimator="difference", refresh=4),
    "jacobian": rectified(rectification="jacobian", **BACKWARD),
    "jacobian natural": rectified(rectification="jacobian", estimator="difference", refresh=1),
    "jacobian small step": rectified(rectification="jacobian", estimator="difference", step=0.01, refresh=1),
    "jacobian every 4": rectified(rectification="jacobian", estimator="difference", refresh=4),
    "ratio": rectified(**RATIO),
    **{f"{name} doubling": rectified(rectification=name, refresh=DOUBLING) for name in RECTIFICATIONS},
    "ratio every 4": rectified(**RATIO | {"refresh": 4}),
    "spectral ratio": replaced(SpectralRatio(), estimator="difference", refresh=1),
    "broken: elementwise of another": replaced(ElementwiseOfAnother(), refresh=1),
    "broken: elementwise, wrong sign": lambda model, cfg: on_model(model, WrongSign("elementwise", refresh=1)),
    "broken: jacobian of another": replaced(JacobianOfAnother(), refresh=1),
    "broken: jacobian, wrong sign": lambda model, cfg: on_model(model, WrongSign("jacobian", refresh=1)),
}
AUTO = {
    "autoguidance": plain,
    "autoguidance elementwise": RULES["elementwise"],
    "autoguidance jacobian": RULES["jacobian"],
    "autoguidance ratio": RULES["ratio"],
    on("autoguidance", "elementwise"): rectified(**DEFAULT),
    on("autoguidance", "jacobian"): rectified(**DEFAULT | {"rectification": "jacobian"}),
}
PROFILED = {  # rectification, and the percents of the run that it is confined to
    "elementwise profile": ("elementwise", None),
    "jacobian profile": ("jacobian", None),
    "ratio profile": ("ratio", None),
    named("ratio profile in", BEST_FOR_RATIO): ("ratio", BEST_FOR_RATIO),
}
SEARCHED = tuple(named(rule, ends) for rule in ("interval", "ratio in") for ends in INTERVALS)
BEST = named("interval", BEST_INTERVAL), named("ratio in", BEST_FOR_RATIO)
CONTENDERS = (
    "cfg",
    "c2fg",
    BEST[0],
    "ratio",
    "ratio every 4",
    "ratio profile",
    "elementwise every 4",
    "jacobian every 4",
)
NAMES = ("none", *RULES, *PROFILED, *AUTO)


def patch(name: str, model: ModelPatcher, cfg: float, profile: Callable[[], Profile]) -> ModelPatcher:
    """The model under a rule; `profile` measures one when it is needed."""
    if name in PROFILED:
        rule, ends = PROFILED[name]
        schedule = within(*ends, cfg) if ends else None
        return on_model(model, Options(rule, "profile", profile=profile(), schedule=schedule))
    return (RULES | AUTO | {"none": plain})[name](model, cfg)


def guider(name: str, model: ModelPatcher, weak: Callable[[], ModelPatcher], positive, negative):
    """The guider that samples a patched model under a rule, with its conditionings."""
    if name in AUTO:
        auto = AutoGuider(model, weak())
        auto.set_conds(positive)
        return auto
    cfg = comfy.samplers.CFGGuider(model)
    cfg.set_conds(positive, negative)
    return cfg
