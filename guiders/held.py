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
    Whether a measurement said something stays on the device, and is read where the next one depends on it: reading
    waits for the device.
    """

    def __init__(self, rule: Rectification, every: int):
        """every: what `reg.refresh.is_due` calls refresh."""
        self.rule, self.every = rule, every
        self.measurement: Measurement | None = None
        self.clock = 0  # steps of the sampler; evaluations, where it has none to show
        self.origin: int | None = None  # of the clock: the first measurement that is known to have said something
        self.unread: list[tuple[int, Tensor]] = []  # before there is an origin: the clock, and did it say something?
        self.said: Tensor | None = None  # has any?
        self.sampler_counts = False

    def counting(self, callback: Callable | None) -> Callable:
        """The sampler's callback, by which its steps are counted."""

        def count(i, denoised, x, total_steps):
            if self.sampler_counts and i + 1 < self.clock:  # a second pass through the noise levels
                self.forget()
            self.sampler_counts, self.clock = True, i + 1
            if callback is not None:
                callback(i, denoised, x, total_steps)

        return count

    def evaluated(self) -> None:
        """A guided evaluation is over: that is a step, where the sampler has none to show."""
        if not self.sampler_counts:
            self.clock += 1

    def is_due(self) -> bool:
        if self.measurement is None:
            return True
        if len({self._is_due_from(origin) for origin in (self.origin, *(clock for clock, _ in self.unread))}) > 1:
            self._read()
        return self._is_due_from(self.origin)

    def _is_due_from(self, origin: int | None) -> bool:
        """Until a measurement says something, each next step measures."""
        return origin is None or refresh.is_due(self.clock - origin, self.measurement.clock - origin, self.every)

    def _read(self) -> None:
        informative = torch.stack([said for _, said in self.unread]).tolist()
        self.origin = next((clock for (clock, _), said in zip(self.unread, informative, strict=True) if said), None)
        self.unread.clear()

    def forget(self) -> None:
        """What was measured is of no use any more."""
        self.measurement = self.origin = self.said = None
        self.unread.clear()

    def keep(self, value: Tensor, noise: Tensor) -> None:
        """Hold a value measured at log(σ/α) = noise [batch, 1, ...]; where it says nothing, the last one that did."""
        before, informative = self.measurement, self.rule.is_informative(value)
        if before is not None:
            newer = informative | ~self.said
            value, noise = torch.where(newer, value, before.value), torch.where(newer, noise, before.noise)
        self.said = informative if self.said is None else self.said | informative
        if self.origin is None:
            self.unread.append((self.clock, informative))
        self.measurement = Measurement(value, noise, self.clock)

    def value(self, noise: Tensor) -> Tensor | None:
        """What stands for the Jacobian at log(σ/α) = noise; None before the first measurement."""
        held = self.measurement
        return None if held is None else self.rule.carried(held.value, held.noise - noise)
