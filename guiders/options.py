"""What a user can ask of REG, checked once, before anything is sampled. These defaults are the nodes' defaults, too."""

import math
from dataclasses import dataclass

from ..reg.profile import Profile
from ..reg.rectification import Rectification, named
from ..reg.refresh import DOUBLING
from .autograd.checkpointing import CHOICES as CHECKPOINT_CHOICES
from .estimators import ESTIMATORS
from .schedule import GuidanceSchedule

MOST_STEPS = 100  # between two measurements
PROFILE = "profile"  # beside the estimators: no pass at all, the value is read off a profile


def estimator_names() -> list[str]:
    """What the option `estimator` can be."""
    return [*ESTIMATORS, PROFILE]


@dataclass(frozen=True)
class Options:
    """Options shared by every way in.

    Raises:
        ValueError: an option is out of range; the message names it and the remedy.
    """

    rectification: str = "elementwise"  # a name in reg.rectification.RECTIFICATIONS, or its label
    estimator: str = "auto"
    strength: float = 1.0  # 0 guidance as it was, 1 rectified, above 1 extrapolated
    start_percent: float = 0.0  # ComfyUI's meaning: what model_sampling.percent_to_sigma takes
    end_percent: float = 1.0
    refresh: int = DOUBLING  # measure at guided steps 0, 1, 2, 4, 8, …; or at every n-th
    step: float = 0.0  # difference step over the latent's root mean square; 0 chooses
    checkpoint: str = "auto"  # evaluate blocks again in the reverse pass: where memory asks for it, never, always
    skip_below: float = 0.0  # with a profile: leave out the unconditional pass where guidance does less than this
    profile: Profile | None = None
    schedule: GuidanceSchedule | None = None  # of the guidance itself, rectified or not
    verify: bool = False  # compare the first gradient with differences of the predictions

    def __post_init__(self):
        object.__setattr__(self, "rectification", named(self.rectification).name)
        estimators = estimator_names()
        _require(self.estimator in estimators, f"estimator must be one of {', '.join(estimators)}")
        _require(_within(self.strength, 0, 4), f"strength must be between 0 and 4, not {self.strength}")
        for name in ("start_percent", "end_percent"):
            _require(_within(getattr(self, name), 0, 1), f"{name} must be between 0 and 1, not {getattr(self, name)}")
        _require(
            self.start_percent <= self.end_percent,
            f"start_percent ({self.start_percent}) comes after end_percent ({self.end_percent}): swap them",
        )
        _require(
            0 <= self.refresh <= MOST_STEPS,
            f"measure every must be 0 (doubling gaps) or a number of steps up to {MOST_STEPS}, not {self.refresh}",
        )
        _require(_within(self.step, 0, 1), f"the difference step must be between 0 and 1, not {self.step}")
        _require(self.checkpoint in CHECKPOINT_CHOICES, f"checkpoint must be one of {', '.join(CHECKPOINT_CHOICES)}")
        _require(_within(self.skip_below, 0, 1), f"skip_below must be between 0 and 1, not {self.skip_below}")
        _require(
            self.profile is None or isinstance(self.profile, Profile),
            "what is connected as profile is none: connect REG Load Profile or REG Calibrate",
        )
        _require(
            self.schedule is None or hasattr(self.schedule, "cfg_by_sigma"),
            "what is connected as schedule is none: connect REG Schedule",
        )
        _require(
            self.profile is not None or self.estimator != PROFILE,
            "estimator = profile needs a profile: connect REG Load Profile or REG Calibrate",
        )
        _require(
            self.profile is not None or self.skip_below == 0,
            "skip_below needs a profile: connect REG Load Profile or REG Calibrate, or set it to 0",
        )

    @property
    def rule(self) -> Rectification:
        return named(self.rectification)

    @property
    def uses_profile(self) -> bool:
        """Are values read off the profile? A connected one is used unless another estimator is asked for."""
        return self.estimator == PROFILE or (self.estimator == "auto" and self.profile is not None)

    @property
    def change_nothing(self) -> bool:
        """Is a run with these options a run without?"""
        return self.strength == 0 and self.schedule is None

    def unused(self) -> list[str]:
        """A sentence for each option that was set and that does nothing together with the others."""
        if self.strength == 0:
            return []
        return [sentence for is_set, sentence in self._contradictions() if is_set]

    def _contradictions(self) -> list[tuple[bool, str]]:
        label, measures = self.rule.label, not self.uses_profile
        graphs = measures and self.estimator != "difference" and self.rule.needs in ESTIMATORS["backward"].serves
        backward = self.estimator == "backward" and not graphs
        return [
            (backward, f"{label} is measured by differences, so estimator = backward does nothing"),
            (self.checkpoint == "always" and not graphs, "no gradient is taken here, so checkpoint does nothing"),
            (self.verify and not graphs, "no gradient is taken here, so verify does nothing"),
            (self.step > 0 and not measures, "a profile takes no difference, so the difference step does nothing"),
            (
                self.profile is not None and measures and self.skip_below == 0,
                f"a profile is connected and estimator = {self.estimator} does not use it: choose auto",
            ),
        ]


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"REG: {message}.")
