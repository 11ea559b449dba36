"""The ways a graph asks for rectified guidance: on the model, or on the sampler. A guider takes a model that has it."""

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .options import Options
from .run import KEY, NO_DENOISER, check_profile, start


def on_model(model: ModelPatcher, options: Options) -> ModelPatcher:
    """A clone of the model whose guidance is rectified, by any guider and sampler. The last one in a chain counts.

    Raises:
        ValueError: the model has no denoiser to look at, or the profile is another model's.
    """
    if not hasattr(getattr(model, "model", None), "apply_model") or not hasattr(_sampling(model), "noise_scaling"):
        raise ValueError(NO_DENOISER)
    if options.profile is not None:
        check_profile(options.profile, model.model, model.model.latent_format.latent_channels)
    model = model.clone()
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREPARE_SAMPLING):
        model.remove_wrappers_with_key(kind, KEY)
    if not options.change_nothing:
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _starting(options))
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _asking_for_room)
    return model


def _sampling(model: ModelPatcher):
    return model.get_model_object("model_sampling")


def _starting(options: Options):
    """A SAMPLER_SAMPLE wrapper that begins a run; it holds options only, never state."""

    def sample(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        recorder = start(options, guider, noise, extra_args["model_options"])
        samples = executor(guider, sigmas, extra_args, recorder.watching(callback), noise, *args, **kwargs)
        recorder.finish(samples)
        return samples

    return sample


def _asking_for_room(executor, model, noise_shape, *args, **kwargs):
    """A PREPARE_SAMPLING wrapper: ComfyUI leaves memory for three evaluations in a batch, where CFG has two.

    A probe makes three of them, and a checkpointed graph takes about as much.
    """
    batch, *rest = noise_shape
    return executor(model, [-(-3 * batch // 2), *rest], *args, **kwargs)


class RectifiedSampler(comfy.samplers.Sampler):
    """Any sampler, with the guidance of its runs rectified."""

    def __init__(self, sampler: comfy.samplers.Sampler, options: Options):
        self.sampler = sampler
        self.options = options

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        if self.options.change_nothing:
            return self.sampler.sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)
        recorder = start(self.options, model_wrap, noise, extra_args["model_options"])
        watch = recorder.watching(callback)
        samples = self.sampler.sample(model_wrap, sigmas, extra_args, watch, noise, *args, **kwargs)
        recorder.finish(samples)
        return samples
