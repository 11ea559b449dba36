"""One sampling run with rectified guidance: its hooks, from the first evaluation of a step to its rectified prediction.

A guided step, in order: `on_step` begins it; ComfyUI evaluates the conds, where a gradient or one more evaluation in the
same batch is cheapest (`predictions`); ComfyUI and other patches make the guidance of it; and `on_step`, back again,
rectifies the whole of what they made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from .evaluator import Evaluator, Unmeasurable
from .held import Held
from .hooks import Hook, any_live, leaves_denoised, leaves_predictions, passes_on
from .options import Options
from .pace import Pace
from .patches import OURS
from .predictions import Predictions
from .report.live import LiveLine, begin, log, warn_user
from .report.record import Recorder, recorder
from .rng import RNGState
from .schedule import follow
from .state import Learned, StepState
from .step import GuidedStep


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
    if any_live(get_wrappers_with_key(WrappersMP.CALC_COND_BATCH, OURS, model_options, is_model_options=True)):
        warn_user("this run has REG twice; the one on the model is used")
        yield NoRun()
        return
    begin()
    follower = follow(options.schedule, guider, model_options) if options.schedule is not None else None
    run = _started(options, guider, noise, model_options, mask) if options.strength != 0 else NoRun()
    try:
        yield run
    finally:  # hooks hold both by weak references: here their lives end
        del run, follower


def _started(options, guider, noise, model_options, mask) -> "Run":
    """A run with its hooks in place."""
    check_model(guider.inner_model)
    check_latent(guider.inner_model, noise)
    if options.profile is not None:
        check_profile(options.profile, guider.inner_model, noise.shape[1])
    for sentence in options.unused():
        warn_user(sentence)
    if options.skip_below > 0 and hasattr(guider, "denoise_both"):
        warn_user("skip_below leaves out the pass of a negative prompt, and does nothing in AutoGuidance")
    differences = options.estimator == "difference" or options.rule.needs is Needs.JVP_BOTH
    if differences and not options.uses_profile and patches.merges_tokens(model_options):
        warn_user(
            "token merging jumps from one latent to the next, which spoils differences: choose estimator = backward"
        )
    run = Run(options, guider, noise, mask)
    conds, step = Hook(run.predictions.on_conds, passes_on), Hook(run.on_step, passes_on)
    predicted = Hook(run.predictions.on_predicted, leaves_predictions)
    guided = Hook(run.predictions.on_guided, leaves_denoised)
    model_options["sampler_pre_cfg_function"] = [predicted, *model_options.get("sampler_pre_cfg_function", [])]
    model_options["sampler_post_cfg_function"] = [*model_options.get("sampler_post_cfg_function", []), guided]
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
        kind = ESTIMATORS["difference" if options.uses_profile else options.estimator]
        step = options.step or relative_step(model, noise)
        self.estimator = kind(
            Setting(options, self.rule.needs, self.learned, step, self.recorder.passes, self.recorder.fall_back)
        )
        self.predictions = Predictions(
            options, guider, self.estimator, self.learned, self.recorder, tolerance(model, noise)
        )
        self.held = Held(self.rule, options.refresh)
        self.pace = Pace(self.estimator, self.recorder.passes)
        self.value: Tensor | None = None  # what stands for the Jacobian in this step
        self.shape = noise.shape
        self.given_up = False  # does the guidance stay as it is from here on?
        self.cached = False  # was a cache seen to answer a step?

    def watching(self, callback: Callable | None) -> Callable:
        """The sampler's callback, by which steps are counted, and by which a report sees the last prediction."""
        return self.held.counting(self.recorder.watching(callback))

    def finish(self, samples: Tensor) -> None:
        self.recorder.finish(samples)
        self.live.finish(self.recorder.cfg)

    def on_step(self, executor, x, timestep, *args, **kwargs):
        """PREDICT_NOISE wrapper: a step, and at its end the rectification of all its guidance."""
        sigma = timestep
        if x.shape != self.shape:  # the sampler goes on at another size
            self.shape = x.shape
            self.held.forget()
        self.pace.next_step()
        active = not self.given_up and self._is_in_range(sigma)
        due = active and not self.options.uses_profile and self.held.is_due()
        mask = self._mask_at(x, sigma) if active else None
        state = StepState(x, sigma, active, due, mask, RNGState(x.device) if due else None)
        with self.predictions.of(state):
            denoised = executor(x, timestep, *args, **kwargs)
            return self._rectified(denoised, state) if active else denoised

    def _is_in_range(self, sigma: Tensor) -> bool:
        """Is a step within the range? Reading sigma waits for the device: once a step, and only if there is a range."""
        return not self.ranged or self.range[0] <= float(sigma.flatten()[0]) <= self.range[1]

    def _mask_at(self, x: Tensor, sigma: Tensor) -> Tensor | None:
        mask = self.mask(sigma)
        return mask if mask is not None and mask.shape[1:] == x.shape[1:] else None

    def _rectified(self, denoised: Tensor, state: StepState) -> Tensor:
        """The guided prediction of a step with its guidance rectified, or as it is where that cannot be done."""
        evaluator = self.predictions.guidance()
        if evaluator is None:
            self.recorder.unguided += 1
            return denoised
        step = GuidedStep.of(self, evaluator, state, denoised)
        rounding = rectification.is_rounding(step.guidance, step.d_cond, step.d_uncond)
        if state.hook.get("cond_scale") == 1 and bool(rounding.all()):  # CFG++ asks for D_u at cfg 1, too
            self.recorder.unguided += 1
            return denoised
        try:
            with self.predictions.ours():
                rectified = self._rectify(step, evaluator)
        except Exception as error:
            self._give_up(error)
            rectified = None
        self.held.evaluated()
        if rectified is None:
            return denoised
        rectified = torch.where(rectified.isfinite(), rectified, step.guidance)
        self._report(step, rectified)
        blended = rectification.blend(step.d_cond, step.guidance, rectified, step.strength)
        return torch.where(rounding, denoised, blended)

    def _rectify(self, step: GuidedStep, evaluator: Evaluator) -> Tensor | None:
        """R(g), measured or from the last measurement; None where nothing was measured yet."""
        if step.state.several_latents:
            raise Unmeasurable("another patch guides several latents in one step")
        if self.options.uses_profile:
            self.value = self.rule.from_profile(self.options.profile, step)
        elif step.state.measures and not evaluator.evaluated.from_cache:
            return self._measure(step, evaluator)
        else:
            self.value = self.held.value(step.noise)
            if step.state.measures:
                self._say_cached()
        return None if self.value is None else self.rule.reuse(self.value, step)

    def _measure(self, step: GuidedStep, evaluator: Evaluator) -> Tensor:
        draws_by_now = not self.learned.draws and step.state.rng.has_moved()
        if self.learned.way is None or draws_by_now:
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
