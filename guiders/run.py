"""One sampling run with rectified guidance: its hooks, from the first evaluation of a step to its rectified prediction.

A guided step, in order: `on_step` begins it; ComfyUI evaluates the conds (`on_conds`), where a gradient or one more
evaluation in the same batch is cheapest; ComfyUI and other patches make the guidance of it (`on_predicted`, `on_guided`
only look on); and `on_step`, back again, rectifies the whole of what they made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ..reg import rectification
from ..reg.rectification import Needs
from . import patches
from .checks import check_latent, check_model, check_profile, relative_step, tolerance
from .estimators import ESTIMATORS
from .estimators.base import Setting
from .estimators.difference import is_interrupt
from .evaluator import Evaluator, Unmeasurable, is_partial
from .guidance import find_guidance
from .held import Held
from .hooks import Hook, leaves_denoised, leaves_predictions, passes_on
from .options import Options
from .pace import Pace
from .patches import OURS, blocks_run
from .report.live import LiveLine, begin, log, warn_user
from .report.record import Recorder, recorder
from .rng import RNGState
from .schedule import follow
from .state import Evaluated, Learned, StepState
from .step import GuidedStep

UNSEEN = "reg unseen passes"  # in model options: evaluations for the guidance of this step that are made elsewhere


@contextmanager
def rectified_run(
    options: Options,
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    model_options: dict,
    mask: Callable[[Tensor], Tensor | None] = lambda sigma: None,
) -> Iterator["Run | NoRun"]:
    """Rectify the guidance of the sampling within. `model_options` must be the run's own copy.

    Args:
        mask: sigma [batch] -> the denoise mask in force there (`patches.mask_by_sigma`).

    Raises:
        ValueError: the model has no denoiser to look at, or the latent does not fit it.
    """
    if get_wrappers_with_key(WrappersMP.CALC_COND_BATCH, OURS, model_options, is_model_options=True):
        warn_user("this run has REG twice; the one on the model is used")
        yield NoRun()
        return
    follower = follow(options.schedule, guider, model_options) if options.schedule is not None else None
    run = _started(options, guider, noise, model_options, mask) if options.strength != 0 else NoRun()
    try:
        yield run
    finally:  # hooks hold both by weak references: here their lives end
        del run, follower


def _started(options, guider, noise, model_options, mask) -> "Run":
    """A run with its hooks in place."""
    begin()
    check_model(guider.inner_model)
    check_latent(guider.inner_model, noise)
    if options.profile is not None:
        check_profile(options.profile, guider.inner_model, noise.shape[1])
    for sentence in options.unused():
        warn_user(sentence)
    differences = options.estimator == "difference" or options.rule.needs is Needs.JVP_BOTH
    if differences and not options.uses_profile and patches.merges_tokens(model_options):
        warn_user(
            "token merging jumps from one latent to the next, which spoils differences: choose estimator = backward"
        )
    run = Run(options, guider, noise, mask)
    predicted, guided = Hook(run.on_predicted, leaves_predictions), Hook(run.on_guided, leaves_denoised)
    model_options["sampler_pre_cfg_function"] = [predicted, *model_options.get("sampler_pre_cfg_function", [])]
    model_options["sampler_post_cfg_function"] = [*model_options.get("sampler_post_cfg_function", []), guided]
    conds, step = Hook(run.on_conds, passes_on), Hook(run.on_step, passes_on)
    add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, OURS, conds, model_options, is_model_options=True)
    add_wrapper_with_key(WrappersMP.PREDICT_NOISE, OURS, step, guider.model_options, is_model_options=True)
    return run


class NoRun:
    """A run without REG."""

    def watching(self, callback: Callable | None) -> Callable | None:
        return callback

    def finish(self, samples: Tensor) -> None:
        pass


class Run:
    """What is decided once a run, and the hooks that ComfyUI calls in each of its steps."""

    def __init__(self, options: Options, guider: comfy.samplers.CFGGuider, noise: Tensor, mask: Callable):
        self.options, self.guider, self.rule = options, guider, options.rule
        model = guider.inner_model
        self.sampling = model.model_sampling
        to_sigma = self.sampling.percent_to_sigma
        self.range = to_sigma(options.end_percent), to_sigma(options.start_percent)
        self.ranged = options.start_percent > 0 or options.end_percent < 1
        self.mask = mask
        self.recorder: Recorder = recorder(options, guider)
        self.live = LiveLine(self.rule.label)
        self.learned = Learned()
        self.tolerance = tolerance(model, noise)
        kind = ESTIMATORS["difference" if options.uses_profile else options.estimator]
        step = options.step or relative_step(model, noise)
        self.estimator = kind(
            Setting(options, self.rule.needs, self.learned, step, self.recorder.passes, self.recorder.fall_back)
        )
        self.held = Held(self.rule, options.refresh)
        self.pace = Pace(self.estimator, self.recorder.passes)
        self.value: Tensor | None = None  # what stands for the Jacobian in this step
        self.shape = noise.shape
        self.given_up = False  # does the guidance stay as it is from here on?
        self.cached = False  # was a cache seen to answer a step?
        self.guided_cond = (getattr(guider, "conds", None) or {}).get("positive")
        self.measuring = False  # is an evaluation ours?
        self.state: StepState | None = None

    def watching(self, callback: Callable | None) -> Callable:
        """The sampler's callback, by which steps are counted, and by which a report sees the last prediction."""
        return self.held.counting(self.recorder.watching(callback))

    def finish(self, samples: Tensor) -> None:
        self.recorder.finish(samples)
        self.live.finish(self.recorder.cfg)

    def on_step(self, executor, x, sigma, *args, **kwargs):
        """PREDICT_NOISE wrapper: a step, and at its end the rectification of all its guidance."""
        if x.shape != self.shape:  # the sampler goes on at another size
            self.shape = x.shape
            self.held.forget()
        self.pace.next_step()
        active = self._is_in_range(sigma)
        due = active and self._is_due()
        mask = self._mask_at(x, sigma) if active else None
        self.state = StepState(x, sigma, active, due, mask, RNGState(x.device) if due else None)
        try:
            return self._rectified(executor(x, sigma, *args, **kwargs))
        finally:
            self.state, self.measuring = None, False

    def on_conds(self, executor, model, conds, x, sigma, model_options, *args, **kwargs):
        """CALC_COND_BATCH wrapper: the predictions of the conds, with a measurement where one is due."""

        def calc(model, conds, x, sigma, model_options):
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)

        count, unseen = sum(cond is not None for cond in conds), model_options.get(UNSEEN, 0)
        self._count(count, unseen)
        state = self.state
        unseen_here = state is None or "context_handler" in model_options
        if self.measuring or unseen_here or patches.stand_in(self.guider, model_options) or not self._is_active():
            self.recorder.passes["forward"] += count
            return self._watched(calc, model, conds, x, sigma, model_options)[0]
        here = partial(Evaluated, calc, model, conds, x, sigma, model_options)
        if count == 2 == len(conds) and self._skips(sigma):
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
        if state is None or self.measuring or not self._is_active():
            return out
        if all(evaluated.index(args["conds"][0]) is None for evaluated in state.evaluated):
            options = args["model_options"]
            calc = patches.stand_in(self.guider, options) or comfy.samplers.calc_cond_batch
            where = args["model"], args["conds"], args["input"], args["sigma"], options
            state.evaluated.append(Evaluated(calc, *where, out, [d.clone() for d in out]))
        return out

    def on_guided(self, args: dict) -> Tensor:
        """Post-CFG hook: which conds guidance is between."""
        if self.state is not None and not self.measuring:
            self.state.hook = args
        return args["denoised"]

    def _is_active(self) -> bool:
        """Is the guidance of this step rectified?"""
        return not self.given_up and self.state.active

    def _is_in_range(self, sigma: Tensor) -> bool:
        """Is a step within the range? Reading sigma waits for the device: once a step, and only if there is a range."""
        return not self.ranged or self.range[0] <= float(sigma.flatten()[0]) <= self.range[1]

    def _is_due(self) -> bool:
        if self.options.uses_profile or self.given_up:
            return False
        return self.held.is_due()

    def _mask_at(self, x: Tensor, sigma: Tensor) -> Tensor | None:
        mask = self.mask(sigma)
        return mask if mask is not None and mask.shape[1:] == x.shape[1:] else None

    def _count(self, count: int, unseen: int) -> None:
        passes = self.recorder.passes
        passes["forward"] += unseen
        if not self.measuring:
            passes.update(cond=min(count, 1), uncond=max(count - 1, 0) + unseen)

    def _watched(self, calc, model, conds, *args) -> tuple[list[Tensor], bool]:
        """ComfyUI's own evaluation, and whether a cache answered it: the first one of a run it cannot answer yet."""
        measures = self.state is not None and self.state.measures
        if self.measuring or (self.learned.blocks["ComfyUI"] and not measures):
            return calc(model, conds, *args), False
        with blocks_run(getattr(model, "diffusion_model", None)) as ran:
            out = calc(model, conds, *args)
        return out, is_partial(self.learned.blocks, "ComfyUI", ran)

    def _skips(self, sigma: Tensor) -> bool:
        """Does guidance do too little here, by the profile, to be worth an unconditional pass?"""
        if not self.options.skip_below:
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
        if not known or state.evaluated or state.x is not whole.x or patches.wraps_network(whole.model_options):
            return None
        position = self._position(whole)
        out = self._tried_ahead(self._evaluator(whole, position))
        if out is not None:
            state.ahead_of = whole.conds[position]
            state.evaluated.append(here(out, [d.clone() for d in out]))
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

    def _evaluator(self, evaluated: Evaluated, position: int, other=None, other_position: int = -1) -> Evaluator:
        return Evaluator(
            evaluated,
            position,
            self.learned,
            self.state.rng,
            self.recorder.passes,
            self.tolerance,
            other,
            other_position,
            getattr(self.guider, "denoise_both", None),
            patches.stand_in(self.guider, evaluated.model_options) is not None,
        )

    def _rectified(self, denoised: Tensor) -> Tensor:
        """The guided prediction of a step with its guidance rectified, or as it is where that cannot be done."""
        if not self._is_active():
            return denoised
        evaluator = self._guidance()
        if evaluator is None:
            self.recorder.unguided += 1
            return denoised
        step = GuidedStep.of(self, evaluator, denoised)
        rounding = rectification.is_rounding(step.guidance, step.d_cond, step.d_uncond)
        if self.state.hook.get("cond_scale") == 1 and bool(rounding.all()):  # CFG++ asks for D_u at cfg 1, too
            self.recorder.unguided += 1
            return denoised
        self.measuring = True
        try:
            rectified = self._rectify(step, evaluator)
        except Exception as error:
            self._give_up(error)
            rectified = None
        self.measuring = False
        self.held.evaluated()
        if rectified is None:
            return denoised
        rectified = torch.where(rectified.isfinite(), rectified, step.guidance)
        self._report(step, rectified)
        blended = rectification.blend(step.d_cond, step.guidance, rectified, step.strength)
        return torch.where(rounding, denoised, blended)

    def _guidance(self) -> Evaluator | None:
        """Evaluations for what the step's guidance is between; None where there is no guidance."""
        state = self.state
        found = find_guidance(state, self.guider, self.guided_cond)
        if found is None:
            return None
        self.guided_cond = found.cond
        if state.ahead_of is not found.cond:  # another is guided than was measured: look there next time
            state.jt_ones = state.graph = None
        state.d_uncond = found.d_uncond
        return self._evaluator(found.guided, found.position, found.other, found.other_position)

    def _rectify(self, step: GuidedStep, evaluator: Evaluator) -> Tensor | None:
        """R(g), measured or from the last measurement; None where nothing was measured yet."""
        if self.options.uses_profile:
            self.value = self.rule.from_profile(self.options.profile, step)
        elif self.state.measures and not evaluator.evaluated.from_cache:
            return self._measure(step, evaluator)
        else:
            self.value = self.held.value(step.noise)
            if self.state.measures:
                self._say_cached()
        return None if self.value is None else self.rule.reuse(self.value, step)

    def _measure(self, step: GuidedStep, evaluator: Evaluator) -> Tensor:
        if self.learned.way is None:
            evaluator.find_way(step.guidance)
            self.pace.waited()
        rectified, self.value = self.rule.measure(step)
        self.held.keep(self.value, step.noise)
        return rectified

    def _say_cached(self) -> None:
        if not self.cached:
            self.cached = True
            warn_user(
                "a cache answers some steps in the place of the network; there REG uses its last measurement again"
            )

    def _give_up(self, error: Exception) -> None:
        """Leave the guidance as it is for the rest of the run, and say why, once."""
        if is_interrupt(error):
            raise error
        self.given_up = True
        if comfy.model_management.is_oom(error):
            comfy.model_management.soft_empty_cache()
            reason = "memory ran out in an extra pass"
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if not isinstance(error, Unmeasurable):
                log.info("REG: an extra pass failed", exc_info=error)
                reason = f"an extra pass failed: {reason}"
        self.recorder.fallback = f"guidance left as it is: {reason}"
        warn_user(f"the guidance stays as it is from here on: {reason}")

    def _report(self, step: GuidedStep, rectified: Tensor) -> None:
        """Tell the recorder and the live line of a step."""
        self.recorder.estimator = "profile" if self.options.uses_profile else self.estimator.in_use
        self.live.step(self.recorder.cfg)
        self.recorder.step(step, rectified, self.value)
