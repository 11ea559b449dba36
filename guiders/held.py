"""What stands for the model's Jacobian between two measurements, and when it is measured anew."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..reg import refresh
from ..reg.rectification import Rectification
from .state import Measurement


class Held:
    """The last measurement of a run that said something.

    Time is counted in steps of the sampler, so that samplers which evaluate twice a step measure as often as others.
    """

    def __init__(self, rule: Rectification, every: int):
        """every: what `reg.refresh.is_due` calls refresh."""
        self.rule, self.every = rule, every
        self.measurement: Measurement | None = None
        self.clock = 0  # steps of the sampler; evaluations, where it has none to show
        self.origin: int | None = None  # of the clock: the first measurement that said something
        self.sampler_counts = False

    def counting(self, callback: Callable | None) -> Callable:
        """The sampler's callback, by which its steps are counted."""

        def count(i, denoised, x, total_steps):
            self.sampler_counts, self.clock = True, i + 1
            if callback is not None:
                callback(i, denoised, x, total_steps)

        return count

    def evaluated(self) -> None:
        """A guided evaluation is over: that is a step, where the sampler has none to show."""
        if not self.sampler_counts:
            self.clock += 1

    def is_due(self) -> bool:
        last = self.measurement.step if self.measurement else None
        return refresh.is_due(self.clock - (self.origin or 0), last, self.every)

    def forget(self) -> None:
        """What was measured is of no use any more."""
        self.measurement = None

    def keep(self, value: Tensor, noise: Tensor) -> None:
        """Hold a value measured at log(σ/α) = noise [batch, 1, ...].

        Until one says something, each next step measures; later, where one says nothing, the one before still stands.
        """
        before, informative = self.measurement, self.rule.is_informative(value)
        step = self.clock - (self.origin or 0)
        if self.origin is not None and before is not None:
            value, noise = torch.where(informative, value, before.value), torch.where(informative, noise, before.noise)
        elif self.origin is None and bool(informative):
            self.origin, step = self.clock, 0
        elif self.origin is None:
            step = None
        self.measurement = Measurement(value, noise, step)

    def value(self, noise: Tensor) -> Tensor | None:
        """What stands for the Jacobian at log(σ/α) = noise; None before the first measurement."""
        held = self.measurement
        return None if held is None else self.rule.carried(held.value, held.noise - noise)
