"""How long a step takes with a reverse pass and without one."""

import math
import time
from collections import Counter

from .estimators import Estimator


class Pace:
    """Tells an estimator when its reverse passes crawl, as they do where a driver spills memory instead of failing.

    Samplers wait for the device once a step, so that the clock on the wall tells of the device, too.
    """

    def __init__(self, estimator: Estimator, passes: Counter):
        self.estimator, self.passes = estimator, passes
        self.started: float | None = None  # the step
        self.reversed = 0  # reverse passes before it
        self.without_graph = math.inf  # seconds: what a step takes without one, the least seen

    def next_step(self) -> None:
        """A step begins, and with it the one before is over."""
        now, reverse = time.monotonic(), self.passes["reverse"]
        if self.started is not None and reverse > self.reversed:
            self.estimator.took(now - self.started, self.without_graph)
        elif self.started is not None:
            self.without_graph = min(self.without_graph, now - self.started)
        self.started, self.reversed = now, reverse

    def waited(self) -> None:
        """The device was waited for in the middle of a step, after three evaluations or more and no reverse pass."""
        self.without_graph = min(self.without_graph, time.monotonic() - self.started)
