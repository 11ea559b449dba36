"""The random numbers to come, so that an evaluation of ours draws the same ones as ComfyUI's.

Token merging, HyperTile and some guidance patches draw in every evaluation. Drawn anew, they would make noise of a
difference; and what an extra evaluation draws must not be missing later. PyTorch's generators belong to the whole
process, so they are moved for a single call at a time, and never for the length of a pass.
"""

import threading
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWS = "rand randn randint randperm rand_like randn_like randint_like bernoulli multinomial normal poisson dropout"
DRAWS_IN_PLACE = "normal_ uniform_ bernoulli_ exponential_ random_ geometric_ cauchy_ log_normal_ dropout_"
DRAWING = frozenset([*DRAWS.split(), *DRAWS_IN_PLACE.split()])
_replaying = threading.local()  # the innermost replay of this thread


class RNGState:
    """The state of the generators of the CPU and of a device, in this thread: those of a replay within one."""

    def __init__(self, device: torch.device):
        module = getattr(torch, device.type, None)
        self.generators = [torch, *([module] if hasattr(module, "get_rng_state") else [])]
        self.states = self._now()

    def has_moved(self) -> bool:
        """Has anybody drawn since?"""
        return not all(map(torch.equal, self.states, self._now()))

    @contextmanager
    def replayed(self):
        """Within, what this thread draws is what came after this state; nobody else's numbers change."""
        outer = getattr(_replaying, "states", None)
        _replaying.states = list(self.states)
        try:
            with _Replay(self.generators):
                yield
        finally:
            _replaying.states = outer

    def _now(self) -> list[Tensor]:
        states = getattr(_replaying, "states", None)
        return _read(self.generators) if states is None else list(states)


class _Replay(TorchFunctionMode):
    """Draws from the states of this thread's replay, call by call."""

    def __init__(self, generators: list):
        super().__init__()
        self.generators = generators

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ not in DRAWING or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        theirs = _read(self.generators)
        _write(self.generators, _replaying.states)
        try:
            return func(*args, **kwargs)
        finally:
            _replaying.states = _read(self.generators)
            _write(self.generators, theirs)


def _read(generators: list) -> list[Tensor]:
    return [generator.get_rng_state() for generator in generators]


def _write(generators: list, states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_rng_state(state)
