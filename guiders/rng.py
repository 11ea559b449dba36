"""The random numbers to come, so that an evaluation of ours draws the same ones as ComfyUI's.

Token merging, HyperTile and some guidance patches draw in every evaluation. Drawn anew, they would make noise of a
difference; and what an extra evaluation draws must not be missing later. PyTorch's generators belong to the whole
process, and other threads draw from them at any time: so they are never moved. Where a run draws again, it draws from
generators of its own.
"""

import threading
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWS = "rand randn randint randperm bernoulli multinomial normal poisson"
DRAWS_IN_PLACE = "normal_ uniform_ bernoulli_ exponential_ random_ geometric_ cauchy_ log_normal_"
DRAWING = frozenset([*DRAWS.split(), *DRAWS_IN_PLACE.split()])  # all take a generator
_replaying = threading.local()  # the generators of the innermost replay of this thread


class RNGState:
    """The state of the generators of the CPU and of a device, in this thread: those of a replay within one."""

    def __init__(self, device: torch.device):
        module = getattr(torch, device.type, None)
        self.sources = {"cpu": torch, **({device.type: module} if hasattr(module, "get_rng_state") else {})}
        self.device = device
        self.states = self._now()

    def has_moved(self) -> bool:
        """Has anybody drawn since?"""
        return not all(map(torch.equal, self.states.values(), self._now().values()))

    @contextmanager
    def replayed(self):
        """Within, what this thread draws is what came after this state; nobody else's numbers change."""
        outer = getattr(_replaying, "generators", None)
        _replaying.generators = {kind: self._generator(kind) for kind in self.sources}
        try:
            with _Replay(_replaying.generators):
                yield
        finally:
            _replaying.generators = outer

    def _generator(self, kind: str) -> torch.Generator:
        generator = torch.Generator(self.device if kind == self.device.type else kind)
        generator.set_state(self.states[kind])
        return generator

    def _now(self) -> dict[str, Tensor]:
        generators = getattr(_replaying, "generators", None)
        if generators is None:
            return {kind: source.get_rng_state() for kind, source in self.sources.items()}
        return {kind: generators[kind].get_state() for kind in self.sources}


class _Replay(TorchFunctionMode):
    """Hands the generators of a replay to every call that draws."""

    def __init__(self, generators: dict[str, torch.Generator]):
        super().__init__()
        self.generators = generators

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func.__name__ in WITHOUT_GENERATOR:
            return WITHOUT_GENERATOR[func.__name__](self.generators, *args, **kwargs)
        if func.__name__ in DRAWING:
            kwargs = {**kwargs, "generator": self.generators.get(_device_of(args, kwargs).type)}
        return func(*args, **kwargs)


def _device_of(args: tuple, kwargs: dict) -> torch.device:
    """Where a call draws."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.get_default_device()


def _empty_like(generators: dict, x: Tensor, **kwargs) -> tuple[Tensor, torch.Generator | None]:
    """Where a call without a `generator` draws into, as PyTorch makes it, and what from."""
    empty = torch.empty_like(x, **kwargs)
    return empty, generators.get(empty.device.type)


def _rand_like(generators: dict, x: Tensor, **kwargs) -> Tensor:
    empty, generator = _empty_like(generators, x, **kwargs)
    return empty.uniform_(generator=generator)


def _randn_like(generators: dict, x: Tensor, **kwargs) -> Tensor:
    empty, generator = _empty_like(generators, x, **kwargs)
    return empty.normal_(generator=generator)


def _randint_like(generators: dict, x: Tensor, *ends: int, **kwargs) -> Tensor:
    named = {name: kwargs.pop(name) for name in ("low", "high") if name in kwargs}
    low, high = (0, *ends, *named.values())[-2:]
    empty, generator = _empty_like(generators, x, **kwargs)
    return empty.random_(low, high, generator=generator)


def _dropout(generators: dict, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As PyTorch makes it on a CPU; on a GPU it draws in another order, which `Evaluator.find_way` notices."""
    if not training or p == 0:
        return x
    kept, generator = _empty_like(generators, x)
    kept.bernoulli_(1 - p, generator=generator).div_(1 - p)
    return x.mul_(kept) if inplace else x * kept


WITHOUT_GENERATOR = {
    "rand_like": _rand_like,
    "randn_like": _randn_like,
    "randint_like": _randint_like,
    "dropout": _dropout,
}
