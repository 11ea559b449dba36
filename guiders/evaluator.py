"""Every evaluation of the model that REG makes, made the same way as the one that ComfyUI made for the step.

A difference is only worth something between two evaluations made the same way: the same conds, in the same batch,
with the same options and the same random numbers, through the same function. The `Evaluator` keeps to that, and checks
once a run that it can: what it gives at the step's own latent must be what ComfyUI gave there (`find_way`).
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ..reg import estimators
from .autograd import attention
from .autograd.calls import DifferentiableCalls, GraphOptions, evaluate_with_graph
from .patches import OURS, blocks_run, hooks_of, unwrapped, without_work_units, wraps_network
from .rng import RNGState
from .state import Evaluated, Learned, Way

COMFYUI = "as ComfyUI evaluates"  # a kind of pass


class Unmeasurable(Exception):
    """An evaluation of ours says nothing about the model; the message says why."""


@dataclass
class Evaluator:
    """Evaluations for one step, of its guided cond and of the one that guidance moves away from."""

    evaluated: Evaluated  # what ComfyUI evaluated, with the guided cond in it
    position: int  # of the guided cond
    learned: Learned
    rng: RNGState  # before ComfyUI's evaluation
    passes: Counter  # every evaluation of a cond is counted as "forward"
    tolerance: float  # of two evaluations made the same way, over the prediction
    other: Evaluated | None = None  # where the cond that guidance moves away from was evaluated
    other_position: int = -1
    d_other: Tensor | None = None  # its prediction, where both conds are evaluated for a measurement
    both_by_guider: Callable | None = None  # (x, sigma=, model_options=) -> D_c, D_u of a guider with a rule of its own
    must_be_together: bool = False  # a patch evaluates in ComfyUI's place, and takes all conds or none
    gap: Tensor | None = None  # of the last way tried
    finite: bool = True  # is the guidance?
    beside: list[Tensor] = field(default_factory=list)  # all predictions of the last evaluation with a graph

    @property
    def d_cond(self) -> Tensor:
        return self.evaluated.predictions[self.position]

    @property
    def cond_hooks(self) -> set:
        """The groups of hooks (LoRAs) that the guided cond is evaluated with."""
        return hooks_of(self.evaluated.conds[self.position])

    @property
    def any_hooks(self) -> bool:
        """Do hooks change the weights for some of the conds?"""
        return any(hooks_of(cond) - {None} for cond in self.evaluated.conds)

    def find_way(self, guidance: Tensor) -> None:
        """Find how an evaluation gives what ComfyUI gave at the step's latent, once a run.

        Raises:
            Unmeasurable: no way does, or the guidance [batch, ...] is not finite.
        """
        self.learned.draws = self.rng.has_moved()
        self.learned.way = next((way for way in self._ways() if self._agrees(way, guidance)), None)
        if self.learned.way is None:
            raise Unmeasurable(self._why_no_way())
        if not self.finite:
            raise Unmeasurable("the model, or a guidance patch, predicts NaN or infinite values")

    def cond(self, x: Tensor) -> Tensor:
        """The guided cond's prediction at another latent."""
        return self._evaluate(self.evaluated, self._conds(), x)[self.position]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of the guided cond and of the other one at another latent, in one batch if they were in one."""
        here, there = self.evaluated, self.other
        if self.both_by_guider is not None:
            with self._same_numbers():
                return self.both_by_guider(x, sigma=here.sigma, model_options=self._options(here))
        if there is here:
            out = self._evaluate(here, self._together((self.position, self.other_position)), x)
            return out[self.position], out[self.other_position]
        return self.cond(x), self._evaluate(there, there.conds, x)[self.other_position]

    def base(self) -> Tensor:
        """The guided cond's prediction at the step's latent, from which differences are taken."""
        return self.cond(self.evaluated.x) if self._may_be_cached() else self.d_cond

    def base_of_both(self) -> tuple[Tensor, Tensor]:
        """The same of both conds."""
        return self.both(self.evaluated.x) if self._may_be_cached() else (self.d_cond, self.d_other)

    def _may_be_cached(self) -> bool:
        """May a patch around the network have answered in its place, unseen? Compiled networks show no blocks."""
        here = self.evaluated
        return wraps_network(here.model_options) and not self.learned.shows_blocks(here.network, COMFYUI)

    def graph(self, options: GraphOptions) -> estimators.Evaluation:
        """The guided cond's prediction at the step's latent, with its graph."""
        model_options = without_work_units(attention.differentiable(self._options(self.evaluated), DifferentiableCalls))

        def denoise(x: Tensor) -> Tensor:
            self.beside = self._calc(self.evaluated, self._conds(), x, model_options)
            return self.beside[self.position]

        network = self.evaluated.network
        with self._same_numbers(), blocks_run(network) as ran:
            found = evaluate_with_graph(denoise, self.evaluated.x, network, options)
        self._require_all(network, ran, "graph")
        return found

    def predictions_with(self, graph: estimators.Evaluation) -> list[Tensor]:
        """The step's predictions, the guided one taken from `graph`: the others keep no graph."""
        if self.learned.way.together:
            return [d.detach() for d in self.beside]
        here = self.evaluated
        others = [None if i == self.position else cond for i, cond in enumerate(here.conds)]
        out = self._calc(here, others, here.x, here.model_options)
        out[self.position] = graph.denoised.detach()
        return out

    def can_batch_a_probe(self) -> bool:
        """Is the latent of one cond ours to move? ControlNets and wrappers would see the one not moved, and patches that
        mix the batch would take the moved one for the guided one."""
        controlled = any("control" in cond for cond in self.evaluated.conds[self.position])
        wrapped = wraps_network(self.evaluated.model_options)
        return not (controlled or wrapped or self.learned.way.together or self.learned.draws)

    def with_probe(self, relative_step: float) -> tuple[list[Tensor], Tensor]:
        """The step's predictions, and J1 from the guided cond once more at x + h, in the same batch if memory allows."""
        here = self.evaluated
        probe = estimators.probe(here.x, torch.ones_like(here.x), relative_step)
        options = self._moving(len(here.conds), 1 / probe.scale)
        conds = [*here.conds, here.conds[self.position]]
        *out, moved = self._calc(here, conds, here.x, options)
        return out, probe.product(out[self.position], moved)

    def _ways(self) -> list[Way]:
        """The ways to evaluate, those that cost and disturb least first."""
        together = [True] if self.must_be_together else [False, True]
        wrapped = [False, True] if wraps_network(self.evaluated.model_options) else [False]
        return [Way(*pair) for pair in ((t, w) for t in together for w in wrapped)]

    def _agrees(self, way: Way, guidance: Tensor) -> bool:
        self.learned.way = way
        x = self.evaluated.x
        try:
            pairs = [(self.d_cond, self.cond(x))] if self.d_other is None else self._pairs_of_both(x)
        except Unmeasurable:
            return False
        self.gap = torch.stack([relative_gap(ours, theirs) for theirs, ours in pairs]).amax()
        agrees, self.finite = torch.stack([self.gap <= self.tolerance, guidance.isfinite().all()]).tolist()  # one wait
        return agrees

    def _pairs_of_both(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The predictions of both conds as the step has them, and ours."""
        return list(zip((self.d_cond, self.d_other), self.both(x), strict=True))

    def _why_no_way(self) -> str:
        """What was seen, where no way agrees."""
        if not all(d.isfinite().all() for d in (self.d_cond, self.d_other) if d is not None):
            return "the model predicts NaN or infinite values"
        if not self.d_cond.any():
            return "another patch evaluates the prompts itself, where REG cannot see it"
        who = "a patch that evaluates the prompts itself" if self.must_be_together else "another patch"
        return f"{who} changes the predictions in a way that REG cannot repeat (they are {float(self.gap):.1%} off)"

    def _conds(self) -> list:
        """What is evaluated for the guided cond."""
        here = self.evaluated
        if self.learned.way is not None and self.learned.way.together:
            return here.conds
        return [cond if i == self.position else None for i, cond in enumerate(here.conds)]

    def _together(self, positions: tuple[int, int]) -> list:
        """What is evaluated for two conds."""
        conds = self.evaluated.conds
        if self.learned.way.together or len(conds) == len(positions):
            return conds
        return [cond if i in positions else None for i, cond in enumerate(conds)]

    def _options(self, evaluated: Evaluated) -> dict:
        way, options = self.learned.way, evaluated.model_options
        return options if way is None or way.wrapped or not wraps_network(options) else unwrapped(options)

    def _evaluate(self, evaluated: Evaluated, conds: list, x: Tensor) -> list[Tensor]:
        """Predictions at x. Raises Unmeasurable where a cache answers in the network's place."""
        with self._same_numbers(), blocks_run(evaluated.network) as ran:
            out = self._calc(evaluated, conds, x, self._options(evaluated))
        self._require_all(evaluated.network, ran, "plain")
        return out

    def _require_all(self, network: torch.nn.Module, ran: set, kind: str) -> None:
        if self.learned.is_partial(network, (kind, self.learned.way), ran):
            raise Unmeasurable("a cache answers in the network's place")

    def _calc(self, evaluated: Evaluated, conds: list, x: Tensor, model_options: dict) -> list[Tensor]:
        if not evaluated.counts_itself:
            self.passes["forward"] += sum(cond is not None for cond in conds)
        return evaluated.calc(evaluated.model, conds, x, evaluated.sigma, model_options)

    def _same_numbers(self):
        return self.rng.replayed() if self.learned.draws else nullcontext()

    def _moving(self, index: int, h: Tensor) -> dict:
        """Model options under which the cond at `index` is evaluated at x + h, and passes for the guided one."""

        def move(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
            chunks = transformer_options["cond_or_uncond"]
            parts = zip(chunks, x.chunk(len(chunks)), strict=True)
            x = torch.cat([part + h.to(part.device) if i == index else part for i, part in parts])
            seen = [self.position if i == index else i for i in chunks]
            options = {**transformer_options, "cond_or_uncond": seen}
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        options = copy_nested_dicts(self.evaluated.model_options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, OURS, move, options, is_model_options=True)
        wrappers = options["transformer_options"]["wrappers"]
        theirs = wrappers[WrappersMP.APPLY_MODEL]
        wrappers[WrappersMP.APPLY_MODEL] = {OURS: theirs.pop(OURS), **theirs}  # ours first: theirs see the guided one
        return options


def relative_gap(found: Tensor, expected: Tensor) -> Tensor:
    """How far a prediction is off, over its own size; infinite where that is 0."""
    size = expected.norm()
    return torch.where(size > 0, (found - expected).norm() / size, torch.inf)
