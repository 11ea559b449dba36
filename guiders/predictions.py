"""The predictions of a run's conds: ComfyUI's own, a measurement made on their way, and what guidance is between.

Every evaluation of a step is noted here as ComfyUI, or a patch in its place, makes it; an `Evaluator` repeats them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..reg.rectification import Needs
from . import patches
from .estimators import Estimator
from .estimators.difference import is_interrupt
from .evaluator import COMFYUI, Evaluator
from .guidance import find_guidance
from .options import Options
from .patches import blocks_run
from .report.live import log
from .report.record import Recorder
from .state import Conds, Evaluated, Learned, StepState, network_of

UNSEEN = "reg unseen passes"  # in model options: evaluations for the guidance of this step that are made elsewhere


class Predictions:
    """The hooks around the evaluations of a step, whose state they fill."""

    def __init__(
        self,
        options: Options,
        guider: comfy.samplers.CFGGuider,
        estimator: Estimator,
        learned: Learned,
        recorder: Recorder,
        tolerance: float,
    ):
        self.options, self.guider, self.estimator = options, guider, estimator
        self.learned, self.recorder, self.tolerance = learned, recorder, tolerance
        self.guided_cond = (getattr(guider, "conds", None) or {}).get("positive")
        self.measuring = False  # is an evaluation ours?
        self.state: StepState | None = None  # of the step that is under way

    @contextmanager
    def of(self, state: StepState) -> Iterator[None]:
        """Within it, evaluations are those of a step."""
        self.state = state
        try:
            yield
        finally:
            self.state = None

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Within it, evaluations are ours, and not of the guidance."""
        self.measuring = True
        try:
            yield
        finally:
            self.measuring = False

    def on_conds(self, executor, model, conds, x_in, timestep, model_options, *args, **kwargs):
        """CALC_COND_BATCH wrapper: the predictions of the conds, with a measurement where one is due."""
        x, sigma = x_in, timestep

        def calc(model, conds, x, sigma, model_options):
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)

        count, unseen = sum(cond is not None for cond in conds), model_options.get(UNSEEN, 0)
        self._count(count, unseen)
        state = self.state
        unseen_here = state is None or "context_handler" in model_options
        if self.measuring or unseen_here or patches.stand_in(self.guider, model_options) or not state.active:
            self.recorder.passes["forward"] += count
            return self._watched(calc, model, conds, x, sigma, model_options)[0]
        here = partial(Evaluated, calc, model, conds, x, sigma, model_options)
        if count == 2 == len(conds) and self._skips(conds, sigma, model_options):
            return self._without_uncond(here)
        out = self._ahead(here) if count + unseen > 1 else None
        if out is None:
            self.recorder.passes["forward"] += count
            out, from_cache = self._watched(calc, model, conds, x, sigma, model_options)
            state.evaluated.append(here(out, [d.clone() for d in out], from_cache))
        return out

    def on_predicted(self, args: dict) -> list[Tensor]:
        """Pre-CFG hook, first of all: predictions that ComfyUI did not make of one batch are seen only here."""
        state, out = self.state, args["conds_out"]
        if state is None or self.measuring or not state.active:
            return out
        if all(evaluated.index(args["conds"][0]) is None for evaluated in state.evaluated):
            options = args["model_options"]
            calc = patches.stand_in(self.guider, options) or comfy.samplers.calc_cond_batch
            where = args["model"], args["conds"], args["input"], args["sigma"], options
            state.evaluated.append(Evaluated(calc, *where, out, [d.clone() for d in out], counts_itself=True))
        if hasattr(self.guider, "denoise_both"):
            state.d_uncond_of_guider = out[1].clone()
        return out

    def on_guided(self, args: dict) -> Tensor:
        """Post-CFG hook: which conds guidance is between."""
        state = self.state
        if state is not None and not self.measuring:
            state.several_latents |= not _same_latent(state.hook.get("input"), args.get("input"))
            state.hook = args
        return args["denoised"]

    def _count(self, count: int, unseen: int) -> None:
        passes = self.recorder.passes
        passes["forward"] += unseen
        if not self.measuring:
            passes.update(cond=min(count, 1), uncond=max(count - 1, 0) + unseen)

    def _watched(self, calc, model, conds, *args) -> tuple[list[Tensor], bool]:
        """ComfyUI's own evaluation, and whether a cache answered it: the first one of a run it cannot answer yet."""
        measures = self.state is not None and self.state.measures
        network = network_of(model)
        if self.measuring or (self.learned.shows_blocks(network, COMFYUI) and not measures):
            return calc(model, conds, *args), False
        with blocks_run(network) as ran:
            out = calc(model, conds, *args)
        return out, self.learned.is_partial(network, COMFYUI, ran)

    def _skips(self, conds: Conds, sigma: Tensor, model_options: dict) -> bool:
        """Does guidance do too little here, by the profile, to be worth an unconditional pass? Some patches need it."""
        needed = model_options.get("disable_cfg1_optimization", False) or hasattr(self.guider, "denoise_both")
        if not self.options.skip_below or needed or all(cond is not self.guided_cond for cond in conds):
            return False
        effect = self.options.profile.at("effect", sigma.flatten()[:1].float())
        return float(effect) * abs(self.guider.cfg - 1) < self.options.skip_below

    def _without_uncond(self, here: Callable) -> list[Tensor]:
        whole = here([], [])
        position = self._position(whole)
        conds = [cond if i == position else None for i, cond in enumerate(whole.conds)]
        self.recorder.passes.update(forward=1, uncond=-1)
        only = whole.calc(whole.model, conds, whole.x, whole.sigma, whole.model_options)[position]
        self.state.evaluated.append(here([only, only], [only.clone(), only.clone()]))
        return [only, only.clone()]

    def _ahead(self, here: Callable) -> list[Tensor] | None:
        """The predictions of all conds, if a measurement that is due made them on its way."""
        state, whole = self.state, here([], [])
        learned = self.learned
        known = learned.way is not None and learned.ahead and not learned.draws and state.measures
        guides = patches.has_own_rule(self.guider) or self.guider.cfg != 1
        if not (known and guides) or state.evaluated or state.x is not whole.x or patches.may_mix(whole.model_options):
            return None
        position = self._position(whole)
        out = self._tried_ahead(self.evaluator(whole, position))
        if out is not None:
            made = here(out, [d.clone() for d in out])
            state.evaluated.append(made)
            state.ahead_of = made, position
            if state.rng.has_moved():  # as it never did before: the way to evaluate must be found anew
                learned.way, state.measures, state.jt_ones, state.graph = None, False, None, None
        return out

    def _tried_ahead(self, evaluator: Evaluator) -> list[Tensor] | None:
        """What the estimator makes of the conds; None, now and for the rest of the run, where that fails."""
        try:
            return self.estimator.ahead(evaluator, self.state)
        except Exception as error:
            if is_interrupt(error):
                raise
            self.state.jt_ones = self.state.graph = None
            self.learned.ahead = False
            out_of_memory = comfy.model_management.is_oom(error)
            log.info("REG: measures after the conds from here on (%s)", error)
        if out_of_memory:  # what failed is gone by now
            comfy.model_management.soft_empty_cache()
        return None

    def _position(self, evaluated: Evaluated) -> int:
        """Where the guided cond stands among those evaluated together; the first unless known better."""
        found = evaluated.index(self.guided_cond)
        return 0 if found is None else found

    def evaluator(self, evaluated: Evaluated, position: int, other=None, other_position: int = -1) -> Evaluator:
        return Evaluator(
            evaluated,
            position,
            self.learned,
            self.state.rng,
            self.recorder.passes,
            self.tolerance,
            other,
            other_position,
            self.state.d_uncond if self.options.rule.needs is Needs.JVP_BOTH else None,
            getattr(self.guider, "denoise_both", None),
            patches.stand_in(self.guider, evaluated.model_options) is not None,
        )

    def guidance(self) -> Evaluator | None:
        """Evaluations for what the step's guidance is between; None where there is no guidance."""
        state = self.state
        found = find_guidance(state, self.guider, self.guided_cond)
        if found is None:
            return None
        self.guided_cond = found.cond
        ahead, position = state.ahead_of or (None, None)
        if ahead is not found.guided or position != found.position:  # another was measured: look there next time
            state.jt_ones = state.graph = None
        state.d_uncond = found.d_uncond
        return self.evaluator(found.guided, found.position, found.other, found.other_position)


def _same_latent(one: Tensor | None, other: Tensor | None) -> bool:
    """Are they one latent, as far as they are known? Reading waits for the device, and is for copies only."""
    if one is other or one is None or other is None:
        return True
    return one.shape == other.shape and torch.equal(one, other)
