"""One sampling run with rectified guidance: born when sampling starts, gone when it ends.

Four hooks do the work, all on the run's own copy of the model options. `_on_step` wraps a step; `_on_conds` wraps the
evaluation of the conds, where what the rectification needs is cheapest; `_on_predicted` runs before any patch of the
predictions; `_on_guided` runs after every guidance rule and post-CFG patch, where the guidance term is known, and
rectifies it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ..reg import estimators, rectification
from ..reg.profile import Profile
from . import attention
from .checkpointing import graph_fits
from .gradients import Care
from .lookahead import Ahead, CondsPass, moved_away_from
from .neighbours import Chance, cache_of, evaluation, hooks_of, merges_tokens
from .options import Options
from .record import Recorder, method, recorder
from .schedule import follow
from .status import LiveLine, log, tell
from .step import RECTIFIERS, Step
from .weights import rounds_activations

KEY = "reg"
BATCH_TOLERANCE = 0.25  # between a probe in a batch and alone: above the rounding of half precision
TRUSTED = 0.05  # how far a gradient may be from differences of the predictions: above their own error
VERIFYING_STEP = 0.03  # the largest of these: products with a vector average the noise of coarse numbers out
NO_DENOISER = "REG: this model has no denoiser: connect a diffusion model, as a checkpoint loader gives it."
UNSEEN = "reg unseen passes"  # in model options: evaluations for the guidance of this step that are made elsewhere


def start(options: Options, guider: comfy.samplers.CFGGuider, noise: Tensor, model_options: dict) -> Recorder:
    """Rectify the guidance of the run that is about to begin. `model_options` must be the run's own copy.

    Gives the run's recorder, to be told how the run ends.

    Raises:
        ValueError: the model has no denoiser to look at, or the latent does not fit it.
    """
    if get_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY, model_options, is_model_options=True):
        tell("is on this run twice; the one on the model is used")
        return Recorder(options, guider, on=False)
    if options.schedule is not None:
        follow(options.schedule, guider, model_options)
    if options.strength == 0:
        return Recorder(options, guider, on=False)
    _check_model(guider.inner_model)
    _check_latent(guider.inner_model, noise)
    if options.profile is not None:
        check_profile(options.profile, guider.inner_model, noise.shape[1])
    if cache_of(model_options) is not None:
        tell("EasyCache answers some steps without the network; there the last measurement stands")
    if merges_tokens(model_options) and (options.estimator == "difference" or options.rectification == "ratio"):
        tell("token merging jumps from one latent to the next, which spoils differences: choose estimator = backward")
    run = Run(options, guider, noise)
    model_options["sampler_pre_cfg_function"] = [run._on_predicted, *model_options.get("sampler_pre_cfg_function", [])]
    model_options["sampler_post_cfg_function"] = [*model_options.get("sampler_post_cfg_function", []), run._on_guided]
    add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, run._on_conds, model_options, is_model_options=True)
    add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, run._on_step, guider.model_options, is_model_options=True)
    return run.recorder


def _check_model(model) -> None:
    if not hasattr(model.model_sampling, "noise_scaling"):
        raise ValueError(NO_DENOISER)


def _check_latent(model, noise: Tensor) -> None:
    channels = model.latent_format.latent_channels
    if noise.ndim >= 4 and noise.shape[1] != channels:
        raise ValueError(
            f"REG: the latent has {noise.shape[1]} channels and this model takes {channels}: "
            "connect an empty latent, or one encoded by this model's own VAE."
        )


def check_profile(profile: Profile, model, channels: int) -> None:
    """Refuse a profile that was measured on another kind of model. Raises ValueError."""
    for name, here in describe(model, channels).items():
        there = profile.about.get(name)
        if there != here:
            raise ValueError(
                f"REG: this profile was measured on a model with {name} {there} and this one has {here}: "
                "measure one for this model with REG Calibrate."
            )


def describe(model, channels: int) -> dict[str, str]:
    """What a profile must agree on with the model it is used on."""
    return {"prediction": model.model_type.name, "channels": str(channels)}


def alpha(sampling, sigma: Tensor, x: Tensor) -> Tensor:
    """What multiplies the clean latent in x at sigma [batch], by the model's own `noise_scaling`: [batch, 1, ...]."""
    ones = torch.ones([len(sigma), *[1] * (x.ndim - 1)], device=x.device, dtype=x.dtype)
    return sampling.noise_scaling(sigma, torch.zeros_like(ones), ones)


def relative_step(model, x: Tensor) -> float:
    """The step of a difference over the root mean square of x [batch, ...], by the precision the model computes in."""
    dtype = model.get_dtype_inference()
    if rounds_activations(getattr(model, "diffusion_model", torch.nn.Identity())):
        return estimators.LARGEST_STEP
    if dtype == torch.float32 and x.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        dtype = torch.float16  # which TF32 is as coarse as
    return estimators.relative_step(dtype, x[0].numel())


class Run:
    """State of one run."""

    def __init__(self, options: Options, guider: comfy.samplers.CFGGuider, noise: Tensor):
        self.options = options
        self.guider = guider
        self.rectifier = RECTIFIERS[options.rectification]
        self.guided_cond = guider.conds.get("positive")
        model = guider.inner_model
        self.sampling = model.model_sampling
        self.sigma_start = self.sampling.percent_to_sigma(options.start_percent)
        self.sigma_end = self.sampling.percent_to_sigma(options.end_percent)
        self.relative_step = options.step or relative_step(model, noise)
        self.backward = options.estimator in ("auto", "backward")
        self.verifies = options.verify or attention.kernel_is_unknown()  # the first gradient
        self.ranged = options.start_percent > 0 or options.end_percent < 1
        self.level: tuple[Tensor, float] | None = None  # sigma of the step, and its value
        self.batches: bool | None = None  # may a probe be in the batch of the conds? Known from the first one on
        self.care: Care | None = None  # of the graph; known from the first one on
        self.age = 0  # guided steps since the last measurement
        self.measuring = False  # are the conds evaluated by us?
        self.conds: list = []  # evaluated together last
        self.ahead: Ahead | None = None
        self.from_cache = False  # were the conds of this step answered without the network?
        self.kept: Tensor | None = None  # what stands for the last measurement
        self.made: Tensor | None = None  # the last rectified prediction
        self.compares_guider = True  # does the guider give what was made, or does it go on?
        self.recorder = recorder(options, guider)
        self.live = LiveLine(self.recorder.kept_name)

    def _is_active(self, sigma: Tensor) -> bool:
        """Is the step within the range? Reading sigma waits for the device: once a step, and only if there is one."""
        if not self.ranged:
            return True
        if self.level is None or self.level[0] is not sigma:
            self.level = sigma, float(sigma.flatten()[0])
        return self.sigma_end <= self.level[1] <= self.sigma_start

    def _measures(self) -> bool:
        """Does this guided step measure anew?"""
        if self.options.estimator == "profile" or self.from_cache:
            return False
        return self.kept is None or self.age >= self.options.every

    def _on_step(self, executor, x, *args, **kwargs):
        """PREDICT_NOISE wrapper: a step begins, and nothing is looked ahead for it yet."""
        self.ahead, self.from_cache = None, False
        if self.made is not None and self.made.shape != x.shape:
            self.kept = None  # the sampler went on at another size
        denoised = executor(x, *args, **kwargs)
        if self.compares_guider and self.made is not None:  # at one step only, for it waits for the device
            self.compares_guider = False
            if not torch.equal(denoised, self.made):
                tell("comes before the last of this guider's guidance, which stays as it is")
        return denoised

    def _on_conds(self, executor, model, conds, x, sigma, model_options, *args, **kwargs):
        """CALC_COND_BATCH wrapper: the predictions of the conds, looking ahead where the step will be rectified."""
        count, passes = sum(cond is not None for cond in conds), self.recorder.passes
        unseen = model_options.get(UNSEEN, 0)
        passes["forward"] += unseen
        if not self.measuring:
            passes.update(cond=min(count, 1), uncond=max(count - 1, 0) + unseen)
        beside = self.ahead is not None and not self.ahead.is_of(x, sigma)  # a patch evaluates elsewhere
        if self.measuring or beside or not self._is_active(sigma) or "context_handler" in model_options:
            passes["forward"] += count
            return executor(model, conds, x, sigma, model_options, *args, **kwargs)
        if self.ahead is None:
            self.ahead = Ahead(x, sigma, Chance(x.device))
        guided = count + unseen > 1
        if guided:
            self.conds = conds
        here = CondsPass(executor, model, conds, x, sigma, model_options, self._position(), self.ahead.chance, passes)
        out = self._predictions(here) if guided else here.plain()
        self.ahead.predictions += [(cond, d, model) for cond, d in zip(conds, out, strict=True)]
        return out

    def _on_predicted(self, args: dict) -> list[Tensor]:
        """Pre-CFG hook, first of all: predictions that were put together from context windows are seen only here."""
        if self.ahead is None:
            self.ahead = Ahead(args["input"], args["sigma"], Chance(args["input"].device))
            predictions = zip(args["conds"], args["conds_out"], strict=True)
            self.ahead.predictions = [(cond, d, args["model"]) for cond, d in predictions]
        return args["conds_out"]

    def _predictions(self, conds: CondsPass) -> list[Tensor]:
        if self._skips(conds.sigma) and len(conds.conds) == 2:
            self.recorder.passes["uncond"] -= 1
            d_cond = conds.only(conds.x)
            return [d_cond, d_cond.clone()]
        if (cache := cache_of(conds.model_options)) is not None:
            out = conds.plain()
            self.from_cache = cache.skip_current_step
            return out  # what is measured is asked of the network afterwards
        return self._look_ahead(conds) if self._measures() else conds.plain()

    def _skips(self, sigma: Tensor) -> bool:
        """Does guidance do too little here, by the profile, to be worth an unconditional pass?"""
        if not self.options.skip_below:
            return False
        effect = self.options.profile.at("effect", sigma.flatten()[:1].float())
        return float(effect) * abs(self.guider.cfg - 1) < self.options.skip_below

    def _look_ahead(self, conds: CondsPass) -> list[Tensor]:
        if len(hooks_of(conds.conds[conds.position])) > 1:
            self._give_up_backward("the prompt is evaluated with several sets of LoRA weights")
        held = self.rectifier.looks_for == "graph"  # while the other conds are evaluated
        hooked = any(hooks_of(cond) - {None} for cond in conds.conds)  # which changes the weights in it
        if self.rectifier.looks_for == "nothing" or (held and hooked):
            return conds.plain()
        self.ahead.cond = conds.conds[conds.position]
        evaluation = self._try_backward(lambda: self._evaluate_ahead(conds))
        if evaluation is not None:
            return conds.with_graph(evaluation)
        if self.rectifier.looks_for != "ones" or self.batches is False or not conds.can_batch_a_probe():
            return conds.plain()
        if self.batches is None:
            return self._try_batch(conds)
        out, self.ahead.jt_ones = conds.with_probe(self.relative_step)
        return out

    def _try_batch(self, conds: CondsPass) -> list[Tensor]:
        """The predictions and a probe without a common batch, and whether later ones may have one.

        Some models take no batch of three, or let its samples see each other. ComfyUI's own evaluation comes last, so
        that patches which remember one remember that.
        """
        batched = None
        try:
            with conds.chance.beside():
                _, batched = conds.with_probe(self.relative_step)
        except Exception as error:
            log.info("REG: this model takes no probe in the batch of the conds (%s)", error)
        probe, moved = conds.probe_alone(self.relative_step)
        out = conds.plain()
        self.ahead.jt_ones = alone = probe.product(out[conds.position], moved)
        self.batches = batched is not None and bool((batched - alone).norm() <= BATCH_TOLERANCE * alone.norm())
        return out

    def _evaluate_ahead(self, conds: CondsPass) -> estimators.Evaluation:
        evaluation = self._graph(conds)
        if self.rectifier.looks_for == "ones":
            self.ahead.jt_ones = self._pull_back(conds, evaluation, torch.ones_like(conds.x))
        else:
            self.ahead.evaluation = evaluation
        return evaluation

    def _graph(self, conds: CondsPass) -> estimators.Evaluation:
        if self.care is None:
            asked = self.options.checkpoint
            self.care = Care(
                checkpoints=asked == "always" or (asked == "auto" and not graph_fits(conds.model, conds.x))
            )
        return conds.graph(self.care)

    def _position(self) -> int:
        """Where the guided cond stands among those evaluated together; the first unless known better."""
        return next((i for i, cond in enumerate(self.conds) if cond is self.guided_cond), 0)

    def _on_guided(self, args: dict) -> Tensor:
        """Post-CFG hook, last of all: the guided prediction with its guidance term rectified."""
        ahead, self.ahead = self.ahead, None
        if moved_away_from(args)[0] is None:
            self.recorder.unguided += 1
            return args["denoised"]
        if not self._is_active(args["sigma"]):
            return args["denoised"]
        if ahead is None or not ahead.is_of(args["input"], args["sigma"]):
            ahead = Ahead(args["input"], args["sigma"], Chance(args["input"].device))
        if ahead.cond is not args["cond"]:
            ahead.jt_ones = ahead.evaluation = None
            self.guided_cond = args["cond"]  # this guider guides another than was looked at: look there next time
        step = self._step(args, ahead)
        if self.from_cache and self.kept is None:
            return args["denoised"]
        self.measuring = True
        rectified = self._rectify(step)
        self.measuring = False
        self.age += 1
        rectified = torch.where(rectified.isfinite(), rectified, step.guidance)
        self._report(step, rectified)
        self.made = rectification.blend(step.d_cond, step.guidance, rectified, step.strength)
        return self.made

    def _rectify(self, step: Step) -> Tensor:
        if self._measures():
            rectified, self.kept = self.rectifier.measure(step)
            self.age = 0
            return rectified
        if self.options.estimator == "profile":
            self.kept = self.rectifier.profiled(self.options.profile, step)
        return self.rectifier.reuse(self.kept, step)

    def _report(self, step: Step, rectified: Tensor) -> None:
        """Tell the recorder and the live line of a step."""
        self.recorder.estimator = self._estimator()
        self.recorder.step(step, rectified, self.kept)
        how = method(self.options.rectification, self.recorder.estimator)
        self.live.step(self.kept, how, self.recorder.fallback)

    def _estimator(self) -> str:
        """The estimator in use."""
        if self.options.estimator == "profile":
            return "profile"
        return "backward" if self.backward and self.rectifier.looks_for != "nothing" else "difference"

    def _step(self, args: dict, ahead: Ahead) -> Step:
        uncond, d_uncond = moved_away_from(args)
        conds = CondsPass.of_guided_step(args, uncond, self.conds, ahead)
        d_cond = ahead.prediction(args["cond"], args["cond_denoised"])
        if not hasattr(self.guider, "denoise_both"):
            d_uncond = ahead.prediction(uncond, d_uncond)
        product = partial(self._product, conds, d_cond, ahead)
        return Step(
            x=args["input"],
            sigma=args["sigma"],
            alpha=alpha(self.sampling, args["sigma"], args["input"]),
            d_cond=d_cond,
            d_uncond=d_uncond,
            guidance=args["denoised"] - d_cond,
            strength=self.options.strength,
            relative_step=self.relative_step,
            natural=not self.backward and not self.options.step,
            jt_ones=lambda: product(torch.ones_like(args["input"])) if ahead.jt_ones is None else ahead.jt_ones,
            product=product,
            denoise_cond=conds.only,
            denoise_both=self._both(conds),
        )

    def _both(self, conds: CondsPass) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """x -> D_c(x), D_u(x); by the guider if it says how, else from the two conds of the model."""
        ask = getattr(self.guider, "denoise_both", None)
        if ask is not None:
            return partial(ask, sigma=conds.sigma, model_options=conds.model_options)
        return replace(conds, calc=evaluation(self.guider, conds.model_options)).both

    def _product(self, conds: CondsPass, d_cond: Tensor, ahead: Ahead, v: Tensor) -> Tensor:
        """Jᵀv by the reverse pass, or Jv by a difference where that cannot be had."""

        def pull_back() -> Tensor:
            evaluation, ahead.evaluation = ahead.evaluation or self._graph(conds), None
            return self._pull_back(conds, evaluation, v)

        product = self._try_backward(pull_back)
        if product is None:
            probe = estimators.probe(conds.x, v, self.relative_step)
            product = probe.product(d_cond, conds.only(probe.x))
        return product

    def _pull_back(self, conds: CondsPass, evaluation: estimators.Evaluation, v: Tensor) -> Tensor:
        product = evaluation.pull_back(v)
        self.recorder.passes["reverse"] += 1
        if self.verifies:
            self.verifies = False
            step = min(self.relative_step, VERIFYING_STEP)
            gap = estimators.disagreement(conds.only, conds.x, v, product, step)
            if not gap <= TRUSTED:  # NaN is not
                raise RuntimeError(f"what autograd gives is {gap:.0%} off from differences of its predictions")
        return product

    def _try_backward(self, attempt: Callable):
        """The outcome of an attempt that differentiates; None, now and for the rest of the run, if it cannot be had."""
        while self.backward:
            try:
                return attempt()
            except Exception as error:
                out_of_memory = comfy.model_management.is_oom(error)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._learn("out of memory" if out_of_memory else reason, out_of_memory)  # the graph that failed is gone
        return None

    def _learn(self, reason: str, out_of_memory: bool) -> None:
        """Take more care with the next graph, or go on without graphs."""
        care = self.care or Care()
        if out_of_memory:
            comfy.model_management.soft_empty_cache()
        if out_of_memory and not care.checkpoints and self.options.checkpoint != "off":
            self.care = replace(care, checkpoints=True)
        elif "modified by an inplace operation" in reason and not care.copies:
            self.care = replace(care, copies=True)
        else:
            self._give_up_backward(reason)

    def _give_up_backward(self, reason: str) -> None:
        if self.backward:
            self.backward = False
            self.recorder.fallback = f"no gradient: {reason}"
            tell(f"no gradient through this model ({reason}); going on with estimator = difference")
