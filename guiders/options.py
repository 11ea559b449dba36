"""What a user can ask of REG, checked once, before anything is sampled."""

import math
from dataclasses import dataclass

from ..reg.profile import Profile
from .checkpointing import CHOICES as CHECKPOINT_CHOICES
from .schedule import GuidanceSchedule
from .step import RECTIFIERS

RECTIFICATIONS = tuple(RECTIFIERS)
ESTIMATORS = ("auto", "backward", "difference", "profile")


@dataclass(frozen=True)
class Options:
    """Options shared by every way in.

    Raises:
        ValueError: an option is out of range; the message names it and the remedy.
    """

    rectification: str = "elementwise"
    estimator: str = "auto"
    strength: float = 1.0  # 0 guidance as it was, 1 rectified, above 1 extrapolated
    start_percent: float = 0.0  # ComfyUI's meaning: what model_sampling.percent_to_sigma takes
    end_percent: float = 1.0
    every: int = 1  # measure anew every n-th guided step
    step: float = 0.0  # difference step over the latent's root mean square; 0 chooses
    checkpoint: str = "auto"  # evaluate blocks again in the reverse pass: where memory asks for it, never, always
    skip_below: float = 0.0  # with a profile: leave out the unconditional pass where guidance does less than this
    profile: Profile | None = None
    schedule: GuidanceSchedule | None = None  # of the guidance itself, rectified or not
    verify: bool = False  # compare the first gradient with differences of the predictions

    def __post_init__(self):
        _require(self.rectification in RECTIFICATIONS, f"rectification must be one of {', '.join(RECTIFICATIONS)}")
        _require(self.estimator in ESTIMATORS, f"estimator must be one of {', '.join(ESTIMATORS)}")
        _require(_within(self.strength, 0, 4), f"strength must be between 0 and 4, not {self.strength}")
        for name in ("start_percent", "end_percent"):
            _require(_within(getattr(self, name), 0, 1), f"{name} must be between 0 and 1, not {getattr(self, name)}")
        _require(
            self.start_percent <= self.end_percent,
            f"start_percent ({self.start_percent}) comes after end_percent ({self.end_percent}): swap them",
        )
        _require(self.every >= 1, f"every must be 1 or more, not {self.every}")
        _require(_within(self.step, 0, 1), f"step must be between 0 and 1, not {self.step}")
        _require(self.checkpoint in CHECKPOINT_CHOICES, f"checkpoint must be one of {', '.join(CHECKPOINT_CHOICES)}")
        _require(_within(self.skip_below, 0, 1), f"skip_below must be between 0 and 1, not {self.skip_below}")
        _require(
            self.profile is not None or self.estimator != "profile",
            "estimator = profile needs a profile: connect REG Load Profile or REG Calibrate",
        )
        _require(
            self.profile is not None or self.skip_below == 0,
            "skip_below needs a profile: connect REG Load Profile or REG Calibrate, or set it to 0",
        )

    @property
    def change_nothing(self) -> bool:
        """Is a run with these options a run without?"""
        return self.strength == 0 and self.schedule is None


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"REG: {message}.")
