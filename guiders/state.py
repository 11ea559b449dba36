"""What a run remembers, by how long it lasts: a step, until the next measurement, the run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..reg.estimators import Evaluation
from .autograd.calls import GraphOptions
from .rng import RNGState

Conds = list[list[dict] | None]
Calc = Callable[[object, Conds, Tensor, Tensor, dict], list[Tensor]]  # model, conds, x, sigma, model_options


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of conds for a step, as ComfyUI, or a patch in its place, made it."""

    calc: Calc  # the function that made it
    model: object
    conds: Conds
    x: Tensor
    sigma: Tensor
    model_options: dict
    handed: list[Tensor]  # the predictions, which patches may have written into since
    predictions: list[Tensor]  # copies from before
    from_cache: bool = False  # did less of the network run than before?
    counts_itself: bool = False  # do evaluations by `calc` pass our own hook, which counts them?

    @property
    def network(self) -> torch.nn.Module | None:
        return network_of(self.model)

    def index(self, cond: list[dict] | None) -> int | None:
        """Where a cond stands. Conds are told apart by identity, for those of two prompts may be equal."""
        return next((i for i, one in enumerate(self.conds) if one is not None and one is cond), None)

    def gave(self, prediction: Tensor | None) -> bool:
        """Is this one of its predictions, the very same tensor?"""
        return self.index_of_prediction(prediction) is not None

    def index_of_prediction(self, prediction: Tensor | None) -> int | None:
        """Where the cond of a prediction stands, which is how copies of conds are known."""
        return next((i for i, one in enumerate(self.handed) if one is prediction), None)


@dataclass
class StepState:
    """One step of the sampler, from its first evaluation to its guided prediction."""

    x: Tensor
    sigma: Tensor
    active: bool  # is it within the range that is rectified?
    measures: bool  # is a measurement due?
    mask: Tensor | None = None  # 1 where the latent is free to change
    rng: RNGState | None = None  # before the first evaluation, in a step that measures
    evaluated: list[Evaluated] = field(default_factory=list)
    hook: dict = field(default_factory=dict)  # what the last post-CFG hook of the step was told
    several_latents: bool = False  # were such hooks told of more than one latent?
    d_uncond_of_guider: Tensor | None = None  # by a guider with a rule of its own, before any patch
    jt_ones: Tensor | None = None  # had while the conds were evaluated
    graph: Evaluation | None = None  # the same, to be pulled back through once the guidance is known
    ahead_of: tuple[Evaluated, int] | None = None  # where these two are from, and of which of its conds
    d_uncond: Tensor | None = None  # of the cond that guidance moves away from

    def ones(self) -> Tensor:
        """1 wherever the latent is free to change, [batch, ...]."""
        return torch.ones_like(self.x) if self.mask is None else self.mask.expand_as(self.x).to(self.x)


@dataclass
class Measurement:
    """What stands for the model's Jacobian until the next measurement."""

    value: Tensor  # as the rectification reuses it
    noise: Tensor  # log(σ/α) where it was measured, [batch, 1, ...]
    clock: int  # of `Held`


class Way(NamedTuple):
    """How an evaluation of ours is made, so that it gives what ComfyUI's gave."""

    together: bool  # with all conds of the step in one batch, or the guided one alone
    wrapped: bool  # within the wrappers that other patches put around the network, or without


@dataclass
class Learned:
    """What a run found out about its model. None is not known yet."""

    way: Way | None = None
    graph: GraphOptions | None = None
    ahead: bool = True  # can a measurement be made while ComfyUI evaluates the conds?
    batches_probe: bool | None = None  # may a probe be in the batch of the conds?
    draws: bool = False  # does an evaluation draw random numbers?
    blocks: Counter = field(default_factory=Counter)  # of a network that run at the most, by (network, kind of pass)

    def shows_blocks(self, network: torch.nn.Module | None, kind: object) -> bool:
        """Did any block of the network run in a pass of this kind? Those of a compiled network are not seen."""
        return self.blocks[network, kind] > 0

    def is_partial(self, network: torch.nn.Module | None, kind: object, ran: set) -> bool:
        """Did fewer blocks of the network run than in a full pass of this kind, as far as one was made?"""
        most = self.blocks[network, kind] = max(self.blocks[network, kind], len(ran))
        return len(ran) < most


def network_of(model: object) -> torch.nn.Module | None:
    """What predicts in one of ComfyUI's models."""
    return getattr(model, "diffusion_model", None)
