"""The ways a graph asks for rectified guidance: on the model, or on the sampler. A guider takes a model that has it."""

import math
from functools import partial

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .autograd.checkpointing import make_room
from .checks import NO_DENOISER, check_profile
from .estimators import ESTIMATORS
from .options import Options
from .patches import OURS, mask_by_sigma
from .run import rectified_run


def on_model(model: ModelPatcher, options: Options) -> ModelPatcher:
    """A clone of the model whose guidance is rectified, by any guider and sampler. The last one in a chain counts.

    Raises:
        ValueError: the model has no denoiser to look at, or the profile is another model's.
    """
    check_model(model)
    if options.profile is not None:
        check_profile(options.profile, model.model, model.model.latent_format.latent_channels)
    model = model.clone()
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREPARE_SAMPLING):
        model.remove_wrappers_with_key(kind, OURS)
    if not options.change_nothing:
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, OURS, partial(_sample, options))
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, OURS, partial(_ask_for_room, options))
    return model


def check_model(model: ModelPatcher) -> None:
    """Raises ValueError: it has no denoiser to look at."""
    has_network = hasattr(getattr(model, "model", None), "apply_model")
    if not has_network or not hasattr(model.get_model_object("model_sampling"), "noise_scaling"):
        raise ValueError(NO_DENOISER)


def _sample(
    options: Options,
    executor,
    guider,
    sigmas,
    extra_args,
    callback,
    noise,
    latent_image=None,
    denoise_mask=None,
    *args,
    **kwargs,
):
    """A SAMPLER_SAMPLE wrapper that begins a run; what it holds is options, never state."""
    masks = mask_by_sigma(denoise_mask, guider, extra_args["model_options"], sigmas)
    with rectified_run(options, guider, noise, extra_args["model_options"], masks) as run:
        watch = run.watching(callback)
        samples = executor(guider, sigmas, extra_args, watch, noise, latent_image, denoise_mask, *args, **kwargs)
        run.finish(samples)
    return samples


def _ask_for_room(options: Options, executor, model, noise_shape, *args, **kwargs):
    """A PREPARE_SAMPLING wrapper: ComfyUI leaves memory for what the method needs beyond CFG."""
    batch, *rest = noise_shape
    return executor(model, [math.ceil(memory(options, model.model) * batch), *rest], *args, **kwargs)


def memory(options: Options, model) -> float:
    """How much memory a step needs with these options, over that of guidance without REG."""
    if options.strength == 0 or options.uses_profile:
        return 1.0
    return ESTIMATORS[options.estimator].memory(model, options)


def _make_room(options: Options, model, noise) -> None:
    """Let what this run does not use make room, as `_ask_for_room` does before a model is loaded."""
    batch, *rest = noise.shape
    more = math.ceil(2 * (memory(options, model) - 1) * batch)
    if more:
        make_room(model, model.memory_required([more, *rest]), noise.device)


class RectifiedSampler(comfy.samplers.Sampler):
    """Any sampler, with the guidance of its runs rectified."""

    def __init__(self, sampler: comfy.samplers.Sampler, options: Options):
        if not callable(getattr(sampler, "sample", None)):
            raise ValueError("REG: what is connected as sampler is none: connect KSamplerSelect.")
        self.sampler = sampler
        self.options = options

    def __getattr__(self, name):
        if name == "sampler" or name.startswith("__"):  # a copy that is not filled yet has none
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args, **kwargs
    ):
        """ComfyUI's `sample` of a sampler. The model is loaded already: what else is loaded makes room."""
        _make_room(self.options, model_wrap.inner_model, noise)
        masks = mask_by_sigma(denoise_mask, model_wrap, extra_args["model_options"], sigmas)
        with rectified_run(self.options, model_wrap, noise, extra_args["model_options"], masks) as run:
            watch = run.watching(callback)
            samples = self.sampler.sample(
                model_wrap, sigmas, extra_args, watch, noise, latent_image, denoise_mask, *args, **kwargs
            )
            run.finish(samples)
        return samples
